//! Whose ids a container has: what the host lets the caller map, and how the first process becomes the command's user.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{self, Gid, Uid, setgroups, setresgid, setresuid};

use super::idmap::{IdMaps, Own, foreign, inside};
use super::userns::MAPPERS;
use crate::config::{GroupName, IdRange, Identity, Mapping, User, UserName};
use crate::error::{Context, Error, Result};
use crate::etc::{Account, SubordinateRange, account, subordinate_ranges};
use crate::sys::privilege;

/// Of a container's /etc/passwd and /etc/group so much is read.
const MAX_FILE_BYTES: u64 = 4 << 20;
const SUBUID: &str = "/etc/subuid";
const SUBGID: &str = "/etc/subgid";

/// The ids of a container that is about to start.
#[derive(Debug)]
pub(super) struct Ids {
    /// What to write.
    pub(super) maps: IdMaps,
    /// The caller is nobody inside, and files can be made by root only.
    caller_is_absent: bool,
}

/// What the host lets the caller map.
struct Estate {
    uid: u32,
    gid: u32,
    /// By which /etc/subuid may know him, beside his number.
    name: Option<String>,
    uids: Vec<SubordinateRange>,
    gids: Vec<SubordinateRange>,
}

/// A map with every id that the caller can map, if those are more than his own and he is not root anyway.
pub(super) fn everything() -> Option<IdMaps> {
    let estate = Estate::read();
    let (uids, gids) = estate.own();
    let more = estate.uid != 0 && estate.obstacle().is_none();
    more.then(|| IdMaps::compose(&Mapping::Auto, uids, gids))
}

/// Whether users other than the caller can exist in a container of his.
pub fn maps_others() -> bool {
    Estate::read().obstacle().is_none()
}

impl Ids {
    /// What `mapping` comes to here. Where automatic maps cannot be had it is the caller alone, with a warning; given
    /// ones are an error then.
    pub(super) fn settle(mapping: &Mapping) -> Result<Self> {
        let maps = match mapping {
            Mapping::Single => IdMaps::single(Uid::effective().as_raw(), Gid::effective().as_raw()),
            _ => Estate::read().maps(mapping)?,
        };
        let known = |ranges: &[IdRange], id: u32| inside(ranges, id).is_some();
        let is_known =
            known(&maps.uids, Uid::effective().as_raw()) && known(&maps.gids, Gid::effective().as_raw());
        Ok(Self { maps, caller_is_absent: !is_known })
    }

    /// Whether users other than the caller can make files.
    pub(super) fn has_others(&self) -> bool {
        !self.maps.is_only(Uid::effective().as_raw(), Gid::effective().as_raw())
    }

    /// Whether devices can belong to the group `tty`, which is 5 everywhere.
    pub(super) fn has_tty_group(&self) -> bool {
        self.maps.has_gid(5)
    }

    /// Becomes root inside if the caller is nobody there: what nobody makes has no owner, which the kernel refuses.
    pub(super) fn enter(&self) -> Result<()> {
        if !self.caller_is_absent {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        setresgid(gid, gid, gid)
            .and_then(|()| setresuid(uid, uid, uid))
            .context("cannot become", "root of the container")
            .map_err(|error| error.hint("map 0, or your own id: --uidmap 0:HOST:COUNT --gidmap 0:HOST:COUNT"))
    }
}

/// Becomes the user that `identity` asks for, whom the files of the root directory know. His home, unless the
/// process stays who it is.
///
/// Capabilities stay, until something is executed. PR_SET_PDEATHSIG is forgotten.
pub(super) fn become_user(identity: &Identity) -> Result<Option<String>> {
    // Those of another container's user namespace were not written by us.
    let map = |kind: &str| fs::read_to_string(format!("/proc/self/{kind}_map")).unwrap_or_default();
    let maps = IdMaps::parse(&map("uid"), &map("gid"));
    let Some(user) = user(identity, &maps) else {
        return Ok(None);
    };
    let (passwd, group) = (read_bounded("/etc/passwd")?, read_bounded("/etc/group")?);
    let account = account(&user, &passwd, &group)
        .map_err(|cause| Error::new("cannot become user", shown(&user), cause))?;
    change(&account, &maps).map_err(|errno| refused(&user, &account, &maps, errno))?;
    Ok(Some(account.home))
}

impl Estate {
    fn read() -> Self {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let name = unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let ranges = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            subordinate_ranges(&text, name.as_deref(), uid.as_raw())
        };
        let (uids, gids) = (ranges(SUBUID), ranges(SUBGID));
        Self { uid: uid.as_raw(), gid: gid.as_raw(), name, uids, gids }
    }

    fn own(&self) -> (Own<'_>, Own<'_>) {
        (Own { id: self.uid, subordinate: &self.uids }, Own { id: self.gid, subordinate: &self.gids })
    }

    fn maps(&self, mapping: &Mapping) -> Result<IdMaps> {
        let (uids, gids) = self.own();
        let maps = IdMaps::compose(mapping, uids, gids);
        if let Mapping::Given { .. } = mapping {
            return self.check(&maps).map(|()| maps);
        }
        let Some((cause, remedy)) = self.obstacle() else {
            return Ok(maps);
        };
        tracing::warn!("only your own id exists in the container: {cause}\n  hint: {remedy}");
        let alone = |own: Own<'_>| Own { subordinate: &[], id: own.id };
        Ok(IdMaps::compose(mapping, alone(uids), alone(gids)))
    }

    /// Why no more than the own id can be mapped, and the remedy.
    fn obstacle(&self) -> Option<(String, String)> {
        for (file, ranges) in [(SUBUID, &self.uids), (SUBGID, &self.gids)] {
            if ranges.is_empty() {
                return Some((format!("{file} gives no ids to {}", self.called()), self.remedy()));
            }
        }
        self.missing_mapper()
    }

    fn missing_mapper(&self) -> Option<(String, String)> {
        let missing = MAPPERS.into_iter().find(|program| self.uid != 0 && !is_installed(program))?;
        let remedy = "install newuidmap and newgidmap: `sudo apt install uidmap`, or shadow-utils elsewhere";
        Some((format!("{missing} is not installed"), remedy.to_owned()))
    }

    /// Refuses maps of ids that are somebody else's. Root may map whatever exists for him.
    fn check(&self, maps: &IdMaps) -> Result<()> {
        if self.uid == 0 || maps.is_only(self.uid, self.gid) {
            return Ok(());
        }
        for (file, kind, ranges, own, subordinate) in [
            (SUBUID, "user", &maps.uids, self.uid, &self.uids),
            (SUBGID, "group", &maps.gids, self.gid, &self.gids),
        ] {
            if let Some(range) = foreign(ranges, Own { id: own, subordinate }) {
                let cause = format!("not yours to map: you have {own} and {}", listed(subordinate));
                let target = format!("the host's {kind} ids {}", span(range.outside, range.count));
                return Err(Error::new("cannot map", target, cause)
                    .hint(format!("{file} says which are yours; to add some, {}", self.remedy())));
            }
        }
        match self.missing_mapper() {
            Some((cause, remedy)) => Err(Error::new("cannot map", "ids", cause).hint(remedy)),
            None => Ok(()),
        }
    }

    fn called(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }

    fn remedy(&self) -> String {
        format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", self.called())
    }
}

/// Whom `identity` means, if the process is not him anyway.
fn user(identity: &Identity, maps: &IdMaps) -> Option<User> {
    let by_id = |uid: Uid, group| User { name: UserName::Id(uid.as_raw()), group };
    match (&identity.user, &identity.mapping) {
        (Some(user), _) => Some(user.clone()),
        (None, Mapping::Single) => None,
        (None, Mapping::KeepId) => Some(by_id(Uid::current(), Some(GroupName::Id(Gid::current().as_raw())))),
        (None, Mapping::Auto | Mapping::Given { .. }) => {
            maps.has_uid(0).then(|| by_id(Uid::from_raw(0), None))
        }
    }
}

fn change(account: &Account, maps: &IdMaps) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let mapped = account.groups.iter().copied().filter(|&gid| maps.has_gid(gid));
    match setgroups(&mapped.map(Gid::from_raw).collect::<Vec<_>>()) {
        // Nobody may set groups where only the caller's own is mapped; he keeps those that he has.
        Ok(()) | Err(Errno::EPERM) => {}
        failed => return failed,
    }
    setresgid(gid, gid, gid)?;
    set_keepcaps(true)?;
    setresuid(uid, uid, uid)?;
    privilege::raise_permitted()
}

fn refused(user: &User, account: &Account, maps: &IdMaps, errno: Errno) -> Error {
    let Account { uid, gid, .. } = account;
    let missing = match (maps.has_uid(*uid), maps.has_gid(*gid)) {
        (false, _) => format!("the user id {uid} does not exist in this container"),
        (_, false) => format!("the group id {gid} does not exist in this container"),
        (true, true) => {
            return Error::new("cannot become user", shown(user), io::Error::from(errno));
        }
    };
    Error::new("cannot become user", shown(user), missing).hint(
        "--userns=auto maps as many ids as /etc/subuid and /etc/subgid give you, --uidmap and --gidmap single ones",
    )
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// The text of a file of the container, which may be anything; empty if there is none.
fn read_bounded(path: &str) -> Result<String> {
    // Lest a FIFO by that name be waited for.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
    {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.context("cannot open", path)?,
    };
    if !file.metadata().context("cannot look at", path)?.is_file() {
        return Err(Error::new("cannot read", path, "it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).context("cannot read", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn listed(ranges: &[SubordinateRange]) -> String {
    if ranges.is_empty() {
        return "no others".to_owned();
    }
    ranges.iter().map(|range| span(range.first, range.count)).collect::<Vec<_>>().join(", ")
}

fn span(first: u32, count: u32) -> String {
    if count == 1 {
        first.to_string()
    } else {
        format!("{first} to {}", u64::from(first) + u64::from(count) - 1)
    }
}

fn shown(user: &User) -> String {
    let name = match &user.name {
        UserName::Name(name) => name.clone(),
        UserName::Id(uid) => uid.to_string(),
    };
    match &user.group {
        Some(GroupName::Name(group)) => format!("{name}:{group}"),
        Some(GroupName::Id(gid)) => format!("{name}:{gid}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estate(uid: u32, count: u32) -> Estate {
        let ranges = vec![SubordinateRange { first: 100_000, count }; usize::from(count > 0)];
        Estate { uid, gid: uid, name: Some("me".to_owned()), uids: ranges.clone(), gids: ranges }
    }

    fn given(outside: u32, count: u32) -> Mapping {
        let ranges = vec![IdRange { inside: 0, outside, count }];
        Mapping::Given { uids: ranges.clone(), gids: ranges }
    }

    #[test]
    fn without_ranges_the_remedy_is_named_and_the_caller_alone_is_mapped() {
        let estate = estate(1000, 0);
        let (cause, remedy) = estate.obstacle().expect("there is one");
        assert_eq!(cause, "/etc/subuid gives no ids to me");
        assert!(remedy.starts_with("sudo usermod --add-subuids 100000-165535"), "{remedy}");
        assert_eq!(estate.maps(&Mapping::Auto).ok(), Some(IdMaps::single(1000, 1000)));
    }

    #[test]
    fn maps_of_others_ids_are_refused_by_name_of_the_file() {
        let error = estate(1000, 10).maps(&given(100_005, 10)).expect_err("beyond the range").to_string();
        assert!(error.contains("user ids 100005 to 100014"), "{error}");
        assert!(error.contains("1000 and 100000 to 100009") && error.contains(SUBUID), "{error}");
        assert!(estate(1000, 0).maps(&given(1000, 1)).is_ok());
        assert!(estate(0, 0).maps(&given(5, 5000)).is_ok());
    }
}
