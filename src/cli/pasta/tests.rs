//! Command lines of pasta.

