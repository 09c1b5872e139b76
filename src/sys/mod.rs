//! The kernel's raw interfaces, and every `unsafe` block of rnet.
//!
//! Each module offers safe functions over one area; what they decide with is passed in.

pub mod datagram;
pub mod link;
pub mod netlink;
pub mod packet;
pub mod tun;
