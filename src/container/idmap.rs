//! Which of the host's ids a container has: a map is composed of what the caller may give away. Pure.

use crate::config::{IdRange, Mapping};
use crate::etc::SubordinateRange;

/// Lines that the kernel takes for one map (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// The ids of a container, inside and at the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdMaps {
    pub(super) uids: Vec<IdRange>,
    pub(super) gids: Vec<IdRange>,
}

/// What one user may map of one kind of id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    /// His own.
    pub(super) id: u32,
    /// Those that the host's administrator gave him.
    pub(super) subordinate: &'a [SubordinateRange],
}

impl IdMaps {
    /// The caller as root, alone.
    pub(super) fn single(uid: u32, gid: u32) -> Self {
        let root = |own| vec![IdRange { inside: 0, outside: own, count: 1 }];
        Self { uids: root(uid), gids: root(gid) }
    }

    /// What `mapping` means for a user who owns these.
    pub(super) fn compose(mapping: &Mapping, uids: Own<'_>, gids: Own<'_>) -> Self {
        match mapping {
            Mapping::Single => Self::single(uids.id, gids.id),
            Mapping::Auto => Self { uids: around(0, uids), gids: around(0, gids) },
            Mapping::KeepId => Self { uids: around(uids.id, uids), gids: around(gids.id, gids) },
            Mapping::Given { uids, gids } => Self { uids: uids.clone(), gids: gids.clone() },
        }
    }

    /// What the texts of a process's uid_map and gid_map say.
    pub(super) fn parse(uids: &str, gids: &str) -> Self {
        Self { uids: parsed(uids), gids: parsed(gids) }
    }

    /// Whether nobody but the caller with these ids exists, so that the kernel takes the maps from himself.
    pub(super) fn is_only(&self, uid: u32, gid: u32) -> bool {
        let only = |ranges: &[IdRange], own: u32| matches!(ranges, [range] if range.outside == own && range.count == 1);
        only(&self.uids, uid) && only(&self.gids, gid)
    }

    pub(super) fn has_uid(&self, inside: u32) -> bool {
        contains(&self.uids, inside)
    }

    pub(super) fn has_gid(&self, inside: u32) -> bool {
        contains(&self.gids, inside)
    }
}

fn parsed(text: &str) -> Vec<IdRange> {
    let ranges = text.lines().filter_map(|line| {
        let numbers: Vec<u32> = line.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [inside, outside, count] = numbers[..] else { return None };
        Some(IdRange { inside, outside, count })
    });
    ranges.collect()
}

/// What the host's `id` is called inside.
pub(super) fn inside(ranges: &[IdRange], id: u32) -> Option<u32> {
    let range =
        ranges.iter().find(|range| id.checked_sub(range.outside).is_some_and(|at| at < range.count))?;
    Some(range.inside + (id - range.outside))
}

/// The first of `ranges` that is not the owner's to map: each must be his own id or lie within one of his ranges, as
/// newuidmap(1) asks.
pub(super) fn foreign<'a>(ranges: &'a [IdRange], own: Own<'_>) -> Option<&'a IdRange> {
    ranges.iter().find(|range| {
        let is_own = range.outside == own.id && range.count == 1;
        let is_given = own.subordinate.iter().any(|given| {
            range
                .outside
                .checked_sub(given.first)
                .is_some_and(|at| u64::from(at) + u64::from(range.count) <= u64::from(given.count))
        });
        !is_own && !is_given
    })
}

fn contains(ranges: &[IdRange], inside: u32) -> bool {
    ranges.iter().any(|range| inside.checked_sub(range.inside).is_some_and(|at| at < range.count))
}

/// The caller's own id at `place`, and his subordinate ones from 0 on, with a gap for it.
fn around(place: u32, own: Own<'_>) -> Vec<IdRange> {
    let mut ranges = vec![IdRange { inside: place, outside: own.id, count: 1 }];
    let mut next = u32::from(place == 0);
    for given in own.subordinate {
        let mut rest = *given;
        while rest.count > 0 && ranges.len() < MAX_LINES {
            if next == place {
                next += 1;
            }
            let room = if next < place { place - next } else { u32::MAX - next };
            let count = rest.count.min(room);
            if count == 0 {
                return ranges;
            }
            ranges.push(IdRange { inside: next, outside: rest.first, count });
            next += count;
            rest = SubordinateRange { first: rest.first + count, count: rest.count - count };
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [SubordinateRange; 2] =
        [SubordinateRange { first: 100_000, count: 1000 }, SubordinateRange { first: 300_000, count: 500 }];

    fn range(inside: u32, outside: u32, count: u32) -> IdRange {
        IdRange { inside, outside, count }
    }

    fn compose(mapping: Mapping, id: u32, subordinate: &[SubordinateRange]) -> Vec<IdRange> {
        let own = Own { id, subordinate };
        IdMaps::compose(&mapping, own, own).uids
    }

    #[test]
    fn caller_is_root_and_his_ranges_follow() {
        let map = compose(Mapping::Auto, 1000, &TWO);
        assert_eq!(map, [range(0, 1000, 1), range(1, 100_000, 1000), range(1001, 300_000, 500)]);
        assert_eq!((inside(&map, 1000), inside(&map, 100_032), inside(&map, 5)), (Some(0), Some(33), None));
        assert_eq!(compose(Mapping::Auto, 1000, &[]), [range(0, 1000, 1)]);
    }

    #[test]
    fn kept_id_splits_the_range_that_it_falls_into() {
        assert_eq!(
            compose(Mapping::KeepId, 700, &TWO),
            [range(700, 700, 1), range(0, 100_000, 700), range(701, 100_700, 300), range(1001, 300_000, 500)]
        );
        let beyond = compose(Mapping::KeepId, 9000, &TWO);
        assert_eq!(beyond, [range(9000, 9000, 1), range(0, 100_000, 1000), range(1000, 300_000, 500)]);
        let first = compose(Mapping::KeepId, 0, &TWO);
        assert_eq!(first, compose(Mapping::Auto, 0, &TWO));
    }

    #[test]
    fn ids_end_where_the_kernel_ends_them() {
        let all = [SubordinateRange { first: 1, count: u32::MAX - 1 }; 3];
        let map = compose(Mapping::Auto, 1000, &all);
        assert_eq!(map, [range(0, 1000, 1), range(1, 1, u32::MAX - 1)]);
        let many = vec![SubordinateRange { first: 5, count: 1 }; 1000];
        assert_eq!(compose(Mapping::KeepId, 3, &many).len(), MAX_LINES);
    }

    #[test]
    fn only_ones_own_ids_can_be_given() {
        let own = Own { id: 1000, subordinate: &TWO };
        let mine = [range(0, 1000, 1), range(1, 100_000, 1000), range(2000, 300_499, 1)];
        assert_eq!(foreign(&mine, own), None);
        for theirs in [range(0, 0, 1), range(0, 1000, 2), range(0, 100_999, 2), range(0, 99_999, 5)] {
            assert_eq!(foreign(&[theirs], own), Some(&theirs));
        }
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        let maps = IdMaps::parse("         0       1001          1\n         1     100000      65536\n", "");
        assert_eq!(maps, IdMaps { uids: vec![range(0, 1001, 1), range(1, 100_000, 65536)], gids: vec![] });
        assert!(IdMaps::parse("0 0 4294967295\n", "").has_uid(4_294_967_294));
    }

    #[test]
    fn map_of_the_caller_alone_is_known() {
        let maps = IdMaps { uids: vec![range(5, 1000, 1)], gids: vec![range(0, 100, 1)] };
        assert!(maps.is_only(1000, 100) && IdMaps::single(1000, 100).is_only(1000, 100));
        assert!(!maps.is_only(1000, 0) && !maps.is_only(0, 100));
        assert!(
            !IdMaps { uids: TWO.map(|given| range(0, given.first, 1)).to_vec(), ..maps }.is_only(1000, 100)
        );
    }
}
