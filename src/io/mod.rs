//! The shell around the core: everything that waits for, reads or writes something of the host.

pub mod resolver;
pub mod routes;
