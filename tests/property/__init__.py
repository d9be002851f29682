"""What holds for any recipe, any artifact and any option, by hypothesis."""
