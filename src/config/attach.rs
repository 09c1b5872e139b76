//! What it takes to give a network to a namespace that exists already.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{LinkSpec, Log, Network};

/// Longest name of a running network, in bytes: it becomes part of a socket's path, of which there are 107.
pub const MAX_NAME_BYTES: usize = 63;

/// All that `rnet attach` needs, and the front-ends that imitate others.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The network.
    pub network: Network,
    /// Whose network it becomes.
    pub target: Target,
    /// The link; not used for [`Target::Tap`] and [`Target::Bess`].
    pub link: LinkSpec,
    /// When it starts to count, and when it ends.
    pub lifecycle: Lifecycle,
    /// What others call it; `None` is the target's or rnet's own process id.
    pub name: Option<String>,
    /// Logging.
    pub log: Log,
}

/// Whose network it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The network namespace of a process.
    Process {
        /// Its id.
        pid: i32,
        /// The user namespace to enter first; `None` is the one that owns the network namespace.
        userns: Option<PathBuf>,
    },
    /// A network namespace by path.
    Path {
        /// A bind mount of it, `/proc/PID/ns/net` or `/proc/self/fd/N`.
        netns: PathBuf,
        /// As above.
        userns: Option<PathBuf>,
    },
    /// The namespaces of the process that bubblewrap names on this descriptor (`bwrap --info-fd`).
    Bubblewrap {
        /// The reading end of a pipe.
        info_fd: RawFd,
    },
    /// Whatever is behind a TAP that somebody has opened; nothing of its interface is changed.
    Tap {
        /// Its descriptor.
        fd: RawFd,
    },
    /// The first who connects to a unix socket of sequenced packets, each of which is a frame.
    Bess {
        /// Where it is made; what was there is removed.
        path: PathBuf,
    },
}

/// When a network counts as ready, and when it ends. SIGTERM and SIGINT always end it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// Gets the one byte `1` when the namespace is configured and ports are listened on, and is closed.
    pub ready_fd: Option<RawFd>,
    /// Its hang-up ends the network; what is written to it does not.
    pub exit_fd: Option<RawFd>,
    /// Gets the process id, in decimal and with a newline, when ready.
    pub pid_file: Option<PathBuf>,
    /// Goes on in the background once ready, without standard streams.
    pub detach: bool,
    /// Goes on when the target's process has ended, or its path is gone.
    pub outlives_target: bool,
}

/// What is configured of the guest's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Setup {
    /// Nothing; it is made, and stays as the kernel makes it.
    Nothing,
    /// MTU, and the guest's addresses and default routes by the network's plans. It is brought up.
    #[default]
    Plan,
    /// The same with these addresses and routes instead. What cannot be set is a note.
    Given {
        /// Addresses with the length of their subnet's prefix.
        addresses: Vec<IpNet>,
        /// Routes, in an order in which each next hop is reachable by those before.
        routes: Vec<GuestRoute>,
    },
}

/// A route of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRoute {
    /// Where it leads.
    pub destination: IpNet,
    /// The next hop; `None` is the link itself.
    pub via: Option<IpAddr>,
    /// Its metric, if it shall have one.
    pub metric: Option<u32>,
}
