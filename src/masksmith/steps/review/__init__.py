"""A page over a project: the costliest or most doubtful images first, judged and mended by hand."""

from masksmith.steps.review.server import review_project as review_project
