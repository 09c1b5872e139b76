//! The ids of a container: which of the host's they are, and who the command is.

/// Ids that follow each other, inside and at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first inside.
    pub inside: u32,
    /// The first at the host.
    pub outside: u32,
    /// How many; not 0, and neither side exceeds 32 bits.
    pub count: u32,
}

/// Where a container's user and group ids come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mapping {
    /// The caller is root, and everyone else nobody. Takes no help from the host.
    #[default]
    Single,
    /// The caller is root, and his subordinate ids follow from 1 on; as [`Self::Single`] where he has none.
    Auto,
    /// The caller is who he is, and his subordinate ids are around his own, root among them.
    KeepId,
    /// Exactly these.
    Given {
        /// Users; at least one range.
        uids: Vec<IdRange>,
        /// Groups; at least one range.
        gids: Vec<IdRange>,
    },
}

/// A user as somebody names him.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// By the name in the container's /etc/passwd.
    Name(String),
    /// By number, whether passwd has it or not.
    Id(u32),
}

/// A group as somebody names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupName {
    /// By the name in the container's /etc/group.
    Name(String),
    /// By number.
    Id(u32),
}

/// Who a command shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub name: UserName,
    /// The group; `None` is what passwd says, with all groups that the user is in.
    pub group: Option<GroupName>,
}

/// The ids of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Which exist.
    pub mapping: Mapping,
    /// Who the command is; `None` is root, and with [`Mapping::KeepId`] the caller.
    pub user: Option<User>,
}
