"""What each verb does with the files of a project."""
