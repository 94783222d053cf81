"""The commands: flags to a frozen dataclass, dataclass to the package, result to the terminal."""
