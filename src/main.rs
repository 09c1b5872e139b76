//! The `rnet` command.

fn main() {}
