//! The ids of a container: which of the host's they are, and who the command is.

use std::fmt;
use std::str::FromStr;

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

/// An id, from digits: any but the last, which means none.
pub(crate) fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number| digits && number != u32::MAX)
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

impl FromStr for User {
    type Err = String;

    /// `NAME|UID[:GROUP|GID]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        let name = id(name).map_or_else(|| word(name).map(UserName::Name), |uid| Ok(UserName::Id(uid)))?;
        let group = group.map(|group| {
            id(group).map_or_else(|| word(group).map(GroupName::Name), |gid| Ok(GroupName::Id(gid)))
        });
        Ok(Self { name, group: group.transpose()? })
    }
}

impl fmt::Display for User {
    /// As [`Self::from_str`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            UserName::Name(name) => f.write_str(name),
            UserName::Id(uid) => write!(f, "{uid}"),
        }?;
        match &self.group {
            Some(GroupName::Name(name)) => write!(f, ":{name}"),
            Some(GroupName::Id(gid)) => write!(f, ":{gid}"),
            None => Ok(()),
        }
    }
}

fn word(name: &str) -> Result<String, String> {
    let usual = !name.is_empty() && !name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control());
    let numeric =
        name.starts_with(|c: char| c.is_ascii_digit()) && name.bytes().all(|byte| byte.is_ascii_digit());
    if usual && !numeric {
        return Ok(name.to_owned());
    }
    Err("it is NAME|UID[:GROUP|GID], such as www-data, 1000 or 1000:100".to_owned())
}

/// The ids of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Which exist.
    pub mapping: Mapping,
    /// Who the command is; `None` is root, and with [`Mapping::KeepId`] the caller.
    pub user: Option<User>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_written_as_they_are_read() {
        for text in ["root", "1000", "www-data:5", "0:staff"] {
            assert_eq!(text.parse::<User>().expect("a user").to_string(), text);
        }
    }
}
