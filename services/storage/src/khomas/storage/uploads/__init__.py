"""New files: granted, staged, verified, given their names, all or nothing."""
