"""Where texts come from: `Example`, and the sources that yield it."""
