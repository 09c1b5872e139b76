//! Every `unsafe` block and raw kernel interface: links, addresses, datagram sockets, processes, mounts, terminals,
//! signals.
//!
//! Nothing here decides anything; callers elsewhere are safe code over typed functions.

pub mod datagram;
pub mod diag;
pub mod factory;
pub(crate) mod landlock;
pub mod link;
pub mod memory;
pub(crate) mod mount;
pub(crate) mod namespace;
pub mod netlink;
pub mod packet;
pub(crate) mod privilege;
pub(crate) mod process;
pub mod program;
pub(crate) mod pty;
pub(crate) mod rights;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub mod stream;
pub mod tun;
