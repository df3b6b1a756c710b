"""What this project measures of itself. A regular package: others install one of this name, which would come first otherwise."""
