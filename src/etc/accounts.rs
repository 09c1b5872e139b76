//! Users and groups: passwd(5) and group(5) of a container, subuid(5) of the host. Pure.
//!
//! A line in any other form is skipped, as the C libraries do. Nothing else but these files is asked: names from
//! directories such as LDAP do not exist here.

use crate::config::{GroupName, User, UserName};

/// Supplementary groups of one process at most (NGROUPS_MAX is 65536; nobody is in that many).
const MAX_GROUPS: usize = 1024;
/// The home of somebody whom passwd does not know.
const NO_HOME: &str = "/";

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Host ids that somebody may give to his containers: `count` from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubordinateRange {
    /// The first of them.
    pub first: u32,
    /// How many; not 0.
    pub count: u32,
}

/// A line of passwd(5).
struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Whom `user` means, by docker's rules: a name comes before a number; a user by number may be missing in `passwd`, and
/// then has the group 0, as root has in any case; supplementary groups are those of a user without a group given. The error is the cause.
pub fn account(user: &User, passwd: &str, group: &str) -> Result<Account, String> {
    let line = passwd_lines(passwd).find(|line| match &user.name {
        UserName::Name(name) => line.name == name,
        UserName::Id(uid) => line.uid == *uid,
    });
    let (uid, gid, home) = match (&line, &user.name) {
        (Some(line), _) => (line.uid, line.gid, line.home),
        (None, UserName::Id(uid)) => (*uid, 0, NO_HOME),
        (None, UserName::Name(name)) if name == "root" => (0, 0, NO_HOME),
        (None, UserName::Name(name)) => return Err(format!("/etc/passwd of the container has no '{name}'")),
    };
    let mut account = Account {
        uid,
        gid,
        groups: Vec::new(),
        home: if home.is_empty() { NO_HOME } else { home }.to_owned(),
    };
    match (&user.group, line) {
        (Some(wanted), _) => account.gid = group_id(wanted, group)?,
        (None, Some(line)) => account.groups = groups_of(line.name, group),
        (None, None) => {}
    }
    Ok(account)
}

/// The ranges that `text`, a /etc/subuid or /etc/subgid, gives to the user with this name or id, in order.
pub fn subordinate_ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<SubordinateRange> {
    let number = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [owner, first, count] = fields[..] else { return None };
        let is_his = name == Some(owner) || owner == number;
        let range = SubordinateRange { first: first.parse().ok()?, count: count.parse().ok()? };
        (is_his && range.count > 0 && range.first.checked_add(range.count).is_some()).then_some(range)
    });
    ranges.collect()
}

fn passwd_lines(text: &str) -> impl Iterator<Item = PasswdLine<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(PasswdLine { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Names, ids and members of group(5).
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else { return None };
        Some((name, gid.parse().ok()?, members))
    })
}

fn group_id(wanted: &GroupName, text: &str) -> Result<u32, String> {
    match wanted {
        GroupName::Id(gid) => Ok(*gid),
        GroupName::Name(wanted) => {
            let found = group_lines(text).find(|(name, ..)| name == wanted);
            found
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| format!("/etc/group of the container has no '{wanted}'"))
        }
    }
}

fn groups_of(user: &str, text: &str) -> Vec<u32> {
    let has_him = |members: &str| members.split(',').any(|member| member == user);
    let groups = group_lines(text).filter(|(.., members)| has_him(members)).map(|(_, gid, _)| gid);
    groups.take(MAX_GROUPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\nweb:x:33:34::/var/www:/bin/false\n\
                          1000:x:7:8::/seven:\nbare:x:50:51:::\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:4:web,other\ntape:x:26:other\nssl:x:101:other,web\n";

    fn of(user: &str, group: Option<&str>) -> Result<Account, String> {
        let user = User {
            name: user.parse().map_or_else(|_| UserName::Name(user.to_owned()), UserName::Id),
            group: group
                .map(|group| group.parse().map_or_else(|_| GroupName::Name(group.to_owned()), GroupName::Id)),
        };
        account(&user, PASSWD, GROUP)
    }

    fn found(uid: u32, gid: u32, groups: &[u32], home: &str) -> Result<Account, String> {
        Ok(Account { uid, gid, groups: groups.to_vec(), home: home.to_owned() })
    }

    #[test]
    fn users_are_found_by_name_and_by_number() {
        assert_eq!(of("web", None), found(33, 34, &[4, 101], "/var/www"));
        assert_eq!(of("33", None), found(33, 34, &[4, 101], "/var/www"));
        assert_eq!(of("4711", None), found(4711, 0, &[], "/"));
        assert_eq!(of("bare", None), found(50, 51, &[], "/"));
        assert!(of("nobody-here", None).is_err());
        let root = User { name: UserName::Name("root".to_owned()), group: None };
        assert_eq!(account(&root, "", ""), found(0, 0, &[], "/"));
    }

    #[test]
    fn group_given_is_the_only_one() {
        assert_eq!(of("web", Some("log")), found(33, 4, &[], "/var/www"));
        assert_eq!(of("12", Some("77")), found(12, 77, &[], "/"));
        assert!(of("web", Some("no-such")).is_err());
    }

    #[test]
    fn files_that_make_no_sense_hold_nobody() {
        let user = User { name: UserName::Id(3), group: None };
        let nobody = found(3, 0, &[], "/");
        for passwd in ["", ":::", "a:b:c:d:e:f:g", "x:x:-3:0::/:", "x:x:99999999999:0::/:\n\n\0"] {
            assert_eq!(account(&user, passwd, "::::\n:"), nobody, "{passwd:?}");
        }
    }

    #[test]
    fn ranges_are_found_by_name_and_by_id() {
        let text =
            "me:100000:65536\nyou:200000:65536\n1000:300000:10\nme:400000:0\nme:x:1\nme:4294967295:2\n";
        let range = |first, count| SubordinateRange { first, count };
        assert_eq!(subordinate_ranges(text, Some("me"), 1000), [range(100_000, 65536), range(300_000, 10)]);
        assert_eq!(subordinate_ranges(text, None, 1000), [range(300_000, 10)]);
        assert_eq!(subordinate_ranges("", Some("me"), 1000), []);
    }
}
