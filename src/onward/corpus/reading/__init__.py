"""Reading: paths of a recipe become files, files become chunks of raw records, chunks become documents."""
