//! What a container's command may do; capabilities by name.

use std::path::PathBuf;

use super::Limit;

/// What the command is left with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// The most it can have, in its own user namespace.
    pub capabilities: Capabilities,
    /// Executing a file gives nothing that was not there before: no set-id bit, no file capability.
    pub no_new_privileges: bool,
    /// What concerns the machine rather than the container is hidden or read-only in /proc and /sys.
    pub masks: bool,
    /// Which system calls it has.
    pub seccomp: Seccomp,
    /// The AppArmor profile that it gets; `None` leaves it rnet's.
    pub apparmor: Option<String>,
    /// What of its SELinux label differs from rnet's.
    pub selinux: SelinuxLabel,
    /// Limits of its resources; the rest are those of rnet's caller.
    pub limits: Vec<Limit>,
}

impl Default for Privileges {
    fn default() -> Self {
        Self {
            capabilities: Capabilities::default(),
            no_new_privileges: true,
            masks: true,
            seccomp: Seccomp::default(),
            apparmor: None,
            selinux: SelinuxLabel::default(),
            limits: Vec::new(),
        }
    }
}

/// Which system calls a command has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// Those of docker's list, which its capabilities lengthen.
    #[default]
    Docker,
    /// All.
    Unconfined,
    /// Those that a profile in JSON leaves: docker's and podman's form, or `linux.seccomp` of OCI's.
    Profile(PathBuf),
}

/// Parts of an SELinux context that are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxLabel {
    /// The SELinux user.
    pub user: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// The type, such as `container_t`.
    pub kind: Option<String>,
    /// The level, with its categories, such as `s0:c1,c2`.
    pub level: Option<String>,
}

/// A set of capabilities, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

/// Names in the order of their numbers (include/uapi/linux/capability.h), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Docker's, which what runs in containers is used to.
const DOCKERS: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

impl Privileges {
    /// All that the command's user namespace gives.
    pub fn unconfined() -> Self {
        Self {
            capabilities: Capabilities::ALL,
            no_new_privileges: false,
            masks: false,
            seccomp: Seccomp::Unconfined,
            ..Self::default()
        }
    }
}

impl Default for Capabilities {
    /// Docker's: what a server started as root needs of it, but nothing that reconfigures the kernel.
    fn default() -> Self {
        DOCKERS.into_iter().filter_map(Self::named).fold(Self::NONE, Self::with)
    }
}

impl Capabilities {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Every one, those of later kernels too.
    pub const ALL: Self = Self(u64::MAX);

    /// The one called `name`, such as `NET_ADMIN` or `cap_net_admin`; all for `ALL`.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase();
        if name == "ALL" {
            return Some(Self::ALL);
        }
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let number = NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << number))
    }

    /// These and `others`.
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These without `others`.
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether all of `others` are among these.
    pub const fn contains(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Those whose bits are set, at their numbers.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// One bit for each, at its number.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_numbered_as_the_kernel_does() {
        let bits = |name| Capabilities::named(name).map(Capabilities::bits);
        assert_eq!(bits("CHOWN"), Some(1));
        assert_eq!(bits("cap_net_admin"), Some(1 << 12));
        assert_eq!(bits("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(bits("CHECKPOINT_RESTORE"), Some(1 << 40));
        assert_eq!(bits("all"), Some(u64::MAX));
        assert_eq!(bits("CAP_ALL"), None);
        assert_eq!(bits("NO_SUCH"), None);
    }

    #[test]
    fn default_is_dockers() {
        assert_eq!(Capabilities::default().bits(), 0xa804_25fb);
    }
}
