from tests import typecheck as typecheck  # the import hook looks it up as an attribute
