//! The shell around the core: links, host sockets and the worker's event loop.

pub mod capture;
pub mod command;
pub mod follow;
mod holder;
pub mod host;
pub mod link;
pub mod ports;
pub mod resolver;
mod sockets;
pub mod splice;
pub mod stop;
pub mod worker;
