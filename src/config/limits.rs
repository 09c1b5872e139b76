//! Limits of what one process of a container may use.

/// A limit of one resource (getrlimit(2)), in that resource's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub resource: Resource,
    /// What counts; up to `hard`. [`Limit::NONE`] is no limit.
    pub soft: u64,
    /// How far the command may raise the former.
    pub hard: u64,
}

impl Limit {
    /// No limit.
    pub const NONE: u64 = u64::MAX;
}

/// What can be limited, with the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Virtual memory, bytes.
    AddressSpace,
    /// A core file, bytes.
    Core,
    /// Processor time, seconds.
    Cpu,
    /// Data segment, bytes.
    Data,
    /// A file that is written, bytes.
    FileSize,
    /// File locks.
    Locks,
    /// Locked memory, bytes.
    LockedMemory,
    /// POSIX message queues, bytes.
    MessageQueues,
    /// Nice value, as 20 minus it.
    Nice,
    /// Open files.
    OpenFiles,
    /// Processes of the container; before Linux 5.14, of the user.
    Processes,
    /// Resident memory, bytes; without effect in Linux.
    Resident,
    /// Real-time priority.
    RealtimePriority,
    /// Processor time in a row as a real-time process, microseconds.
    RealtimeTime,
    /// Queued signals.
    PendingSignals,
    /// Stack, bytes.
    Stack,
}

/// By the names of limits.conf(5), which docker uses.
const NAMES: [(&str, Resource); 16] = [
    ("as", Resource::AddressSpace),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::FileSize),
    ("locks", Resource::Locks),
    ("memlock", Resource::LockedMemory),
    ("msgqueue", Resource::MessageQueues),
    ("nice", Resource::Nice),
    ("nofile", Resource::OpenFiles),
    ("nproc", Resource::Processes),
    ("rss", Resource::Resident),
    ("rtprio", Resource::RealtimePriority),
    ("rttime", Resource::RealtimeTime),
    ("sigpending", Resource::PendingSignals),
    ("stack", Resource::Stack),
];

impl Resource {
    /// The one called `name`, such as `nofile`.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}
