"""The command line: options become a recipe, a stage is called, its artifact is shown."""
