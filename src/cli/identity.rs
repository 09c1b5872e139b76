//! `--user`, `--userns`, `--uidmap` and `--gidmap`: which ids a container has, and who its command is.

use std::str::FromStr;

use clap::Args;

use super::args::CONTAINER;
use crate::config::{GroupName, IdRange, Identity, Mapping, User, UserName, id};

/// Ranges of one map at most: the kernel's own limit (user_namespaces(7)).
const MAX_RANGES: usize = 340;

#[derive(Args, Debug)]
pub(super) struct IdentityArgs {
    /// Be this user of the container: NAME|UID[:GROUP|GID], looked up in its /etc/passwd and /etc/group [default:
    /// root].
    #[arg(short, long, value_name = "USER", value_parser = User::from_str, help_heading = CONTAINER)]
    user: Option<User>,

    /// Which ids exist inside: `single`, you as root; `auto`, your subordinate ids too; `keep-id`, the same with you
    /// as who you are [default: single, or auto with --user].
    #[arg(
        long,
        value_name = "MAP",
        value_parser = userns,
        conflicts_with_all = ["uidmap", "gidmap"],
        help_heading = CONTAINER
    )]
    userns: Option<Mapping>,

    /// Map COUNT users from CONTAINER on to the host's from HOST on, which must be yours: your own id, or of
    /// /etc/subuid. Repeatable.
    #[arg(long, value_name = "CONTAINER:HOST[:COUNT]", value_parser = range, help_heading = CONTAINER)]
    uidmap: Vec<IdRange>,

    /// The same for groups [default: as --uidmap, and the other way round].
    #[arg(long, value_name = "CONTAINER:HOST[:COUNT]", value_parser = range, help_heading = CONTAINER)]
    gidmap: Vec<IdRange>,
}

impl IdentityArgs {
    /// Whether they say which ids exist.
    pub(super) fn names_ids(&self) -> bool {
        self.userns.is_some() || !self.uidmap.is_empty() || !self.gidmap.is_empty()
    }
}

/// What the options mean together. The error is a sentence for the user.
pub(super) fn settle(args: IdentityArgs) -> Result<Identity, String> {
    let mapping = match (args.userns, args.uidmap.is_empty() && args.gidmap.is_empty()) {
        (Some(mapping), _) => mapping,
        (None, false) => given(args.uidmap, args.gidmap)?,
        (None, true) if args.user.as_ref().is_none_or(is_root) => Mapping::Single,
        (None, true) => Mapping::Auto,
    };
    Ok(Identity { mapping, user: args.user })
}

/// Whether the single id of a container without a map will do.
fn is_root(user: &User) -> bool {
    let root = match &user.name {
        UserName::Name(name) => name == "root",
        UserName::Id(uid) => *uid == 0,
    };
    root && match &user.group {
        Some(GroupName::Name(name)) => name == "root",
        Some(GroupName::Id(gid)) => *gid == 0,
        None => true,
    }
}

fn given(uids: Vec<IdRange>, gids: Vec<IdRange>) -> Result<Mapping, String> {
    for (option, ranges) in [("--uidmap", &uids), ("--gidmap", &gids)] {
        if ranges.len() > MAX_RANGES {
            return Err(format!("{option} is given more than {MAX_RANGES} times"));
        }
        if let Some((one, other)) = overlapping(ranges) {
            return Err(format!("{option} maps ids twice: {} and {}", shown(one), shown(other)));
        }
    }
    Ok(match (uids.is_empty(), gids.is_empty()) {
        (_, true) => Mapping::Given { gids: uids.clone(), uids },
        (true, false) => Mapping::Given { uids: gids.clone(), gids },
        (false, false) => Mapping::Given { uids, gids },
    })
}

fn overlapping(ranges: &[IdRange]) -> Option<(&IdRange, &IdRange)> {
    let meet = |a: u32, b: u32, one: &IdRange, other: &IdRange| {
        u64::from(a) < u64::from(b) + u64::from(other.count)
            && u64::from(b) < u64::from(a) + u64::from(one.count)
    };
    ranges.iter().enumerate().find_map(|(at, one)| {
        let other = ranges[at + 1..].iter().find(|other| {
            meet(one.inside, other.inside, one, other) || meet(one.outside, other.outside, one, other)
        })?;
        Some((one, other))
    })
}

fn shown(range: &IdRange) -> String {
    format!("{}:{}:{}", range.inside, range.outside, range.count)
}

fn userns(text: &str) -> Result<Mapping, String> {
    match text {
        "single" => Ok(Mapping::Single),
        "auto" => Ok(Mapping::Auto),
        "keep-id" => Ok(Mapping::KeepId),
        "host" => {
            Err("a container has a user namespace of its own; `auto` maps as many ids as you have".to_owned())
        }
        _ => Err("it is one of single, auto and keep-id; --uidmap and --gidmap say more".to_owned()),
    }
}

fn range(text: &str) -> Result<IdRange, String> {
    const FORM: &str = "it is CONTAINER:HOST:COUNT, such as 0:100000:65536";
    let numbers: Option<Vec<u32>> = text.split(':').map(id).collect();
    let (inside, outside, count) = match numbers.as_deref() {
        Some(&[inside, outside]) => (inside, outside, 1),
        Some(&[inside, outside, count]) => (inside, outside, count),
        _ => return Err(FORM.to_owned()),
    };
    if count == 0 || inside.checked_add(count).is_none() || outside.checked_add(count).is_none() {
        return Err(format!("{FORM}; COUNT is not 0, and ids end at {}", u32::MAX - 1));
    }
    Ok(IdRange { inside, outside, count })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: IdentityArgs,
    }

    fn identity(words: &str) -> Result<Identity, String> {
        let line = Line::try_parse_from(["rnet"].into_iter().chain(words.split_whitespace()));
        line.map_err(|error| error.to_string()).and_then(|line| settle(line.args))
    }

    fn range_of(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange { inside, outside, count }
    }

    #[test]
    fn more_ids_are_mapped_only_for_those_who_need_them() {
        for (words, mapping) in [
            ("", Mapping::Single),
            ("--user root", Mapping::Single),
            ("-u 0:0", Mapping::Single),
            ("-u 0:5", Mapping::Auto),
            ("-u www-data", Mapping::Auto),
            ("-u 1000 --userns=single", Mapping::Single),
            ("--userns=keep-id", Mapping::KeepId),
        ] {
            assert_eq!(identity(words).map(|identity| identity.mapping), Ok(mapping), "{words}");
        }
    }

    #[test]
    fn users_are_named_as_docker_has_it() {
        let user = identity("-u 1000:www").expect("valid").user;
        assert_eq!(user, Some(User { name: UserName::Id(1000), group: Some(GroupName::Name("www".into())) }));
        for words in ["-u :5", "-u a:", "-u 99999999999", "-u 4294967295"] {
            assert!(identity(words).is_err(), "{words}");
        }
    }

    #[test]
    fn one_map_stands_for_both() {
        let both = |ranges: Vec<IdRange>| Mapping::Given { uids: ranges.clone(), gids: ranges };
        let two = vec![range_of(0, 1000, 1), range_of(1, 100_000, 10)];
        let mapping = |words| identity(words).expect("valid").mapping;
        assert_eq!(mapping("--uidmap 0:1000 --uidmap 1:100000:10"), both(two.clone()));
        assert_eq!(mapping("--gidmap 0:1000:1 --gidmap 1:100000:10"), both(two.clone()));
        let apart = mapping("--uidmap 0:7 --gidmap 0:1000:1 --gidmap 1:100000:10");
        assert_eq!(apart, Mapping::Given { uids: vec![range_of(0, 7, 1)], gids: two });
    }

    #[test]
    fn maps_that_the_kernel_would_refuse_are_refused() {
        for words in [
            "--uidmap 0",
            "--uidmap 0:1:0",
            "--uidmap 0:1:x",
            "--uidmap 0:4294967290:10",
            "--uidmap 0:1:2:3",
            "--uidmap 0:100:10 --uidmap 9:200:10",
            "--uidmap 0:100:10 --uidmap 20:109:10",
            "--uidmap 0:1:1 --userns=auto",
            "--userns=host",
        ] {
            assert!(identity(words).is_err(), "{words}");
        }
    }
}
