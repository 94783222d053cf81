"""What tests are built on: tiny models with their tokenizers, and tiny runs written without the package."""
