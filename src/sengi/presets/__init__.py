"""Named recipes with their evidence."""
