//! What slirp4netns knows beside the network itself.

use std::path::PathBuf;

use super::{Attach, IfName};

/// All that `rnet slirp4netns` needs.
#[derive(Clone, Debug)]
pub struct Slirp4netns {
    /// Whose network, and which.
    pub attach: Attach,
    /// Where the API socket is made.
    pub api_socket: Option<PathBuf>,
    /// How rnet restricts itself once everything is open.
    pub confinement: Confinement,
    /// Interfaces whose first address becomes the source of the guest's traffic.
    pub outbound: OutboundInterfaces,
    /// What is said on standard output when it is ready.
    pub greeting: String,
}

/// How rnet restricts itself before it serves its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// No files but `/etc` and `/run`, read-only, and no capability but CAP_NET_BIND_SERVICE.
    pub files: bool,
    /// No system call that a network needs no more.
    pub system_calls: bool,
}

/// Interfaces whose first address becomes the source of the guest's traffic, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboundInterfaces {
    /// For IPv4.
    pub ipv4: Option<IfName>,
    /// For IPv6.
    pub ipv6: Option<IfName>,
}
