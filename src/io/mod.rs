//! The shell around the core: links, host sockets and the worker's event loop.

pub mod link;
