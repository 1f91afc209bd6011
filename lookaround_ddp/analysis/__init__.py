"""The paper's theory, and its analyses of runs; see README.md."""
