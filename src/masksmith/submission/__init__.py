"""Submissions: written, validated and scored."""
