//! The flow table: flows by number and by key, and when each wants attention.
//!
//! One heap holds every deadline. An entry is pushed only when a flow's deadline moves closer; a later one is
//! found when the old entry comes up, so that traffic that merely extends a timeout costs nothing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};

use super::{Instant, PortId};

/// Deadlines of flows that are gone which are not worth looking for.
const MAX_STALE_DEADLINES: usize = 1024;

/// A flow's number: an index that is used again, and a generation that tells its users apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    index: u32,
    generation: u32,
}

impl FlowId {
    /// Position in arrays that parallel the table.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// The generation, for such arrays to check.
    pub fn generation(self) -> u32 {
        self.generation
    }

    /// The flow that `index` and `generation` name.
    pub fn from_parts(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }
}

/// What identifies a flow on the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKey {
    /// A TCP connection, whichever side opened it.
    Tcp {
        /// The guest's link.
        port: PortId,
        /// The guest's end.
        guest: SocketAddr,
        /// The other end as the guest sees it.
        remote: SocketAddr,
    },
    /// All UDP traffic of one guest socket (endpoint-independent mapping, RFC 4787 REQ-1).
    Udp {
        /// The guest's link.
        port: PortId,
        /// The guest's end.
        guest: SocketAddr,
    },
    /// UDP between a client of a published port and the guest.
    UdpPublished {
        /// The guest's link.
        port: PortId,
        /// The guest's end.
        guest: SocketAddr,
        /// The client as the guest sees it.
        remote: SocketAddr,
    },
    /// Echo requests of one guest and identifier.
    Ping {
        /// The guest's link.
        port: PortId,
        /// The guest.
        guest: IpAddr,
        /// ICMP identifier.
        ident: u16,
    },
}

struct Entry<F> {
    flow: F,
    key: Option<FlowKey>,
    deadline: Option<Instant>,
    /// The earliest heap entry that stands for this flow.
    armed: Option<Instant>,
}

struct Slot<F> {
    generation: u32,
    entry: Option<Entry<F>>,
}

/// Flows of type `F`.
pub struct Table<F> {
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
    by_key: HashMap<FlowKey, FlowId>,
    deadlines: BinaryHeap<Reverse<(Instant, FlowId)>>,
    limit: usize,
}

impl<F> Table<F> {
    /// An empty table for at most `limit` flows.
    pub fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            deadlines: BinaryHeap::new(),
            limit,
        }
    }

    /// Flows in it.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether no further flow fits.
    pub fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The flow with `key`.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.by_key.get(key).copied()
    }

    /// Adds a flow, findable by `key` if there is one. `None` if the table is full or the key is taken.
    pub fn insert(&mut self, key: Option<FlowKey>, flow: F) -> Option<FlowId> {
        if self.is_full() || key.is_some_and(|key| self.by_key.contains_key(&key)) {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, entry: None });
                u32::try_from(self.slots.len() - 1).ok()?
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(Entry { flow, key, deadline: None, armed: None });
        let id = FlowId { index, generation: slot.generation };
        if let Some(key) = key {
            self.by_key.insert(key, id);
        }
        Some(id)
    }

    /// The flow `id`, if it still lives.
    pub fn get(&self, id: FlowId) -> Option<&F> {
        Some(&self.entry(id)?.flow)
    }

    /// The flow `id`, if it still lives.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut F> {
        Some(&mut self.entry_mut(id)?.flow)
    }

    /// Replaces the key of `id` (a flow that changed sides). `false` if the new one is taken.
    pub fn rekey(&mut self, id: FlowId, key: FlowKey) -> bool {
        if self.by_key.contains_key(&key) {
            return false;
        }
        let Some(entry) = self.entry_mut(id) else {
            return false;
        };
        if let Some(old) = entry.key.replace(key) {
            self.by_key.remove(&old);
        }
        self.by_key.insert(key, id);
        true
    }

    /// Frees the key of `id` for another flow; from then on it is found by its number only.
    pub fn unkey(&mut self, id: FlowId) {
        if let Some(key) = self.entry_mut(id).and_then(|entry| entry.key.take()) {
            self.by_key.remove(&key);
        }
    }

    /// Takes the flow `id` out.
    pub fn remove(&mut self, id: FlowId) -> Option<F> {
        let slot = self.slots.get_mut(id.index()).filter(|slot| slot.generation == id.generation)?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        if let Some(key) = entry.key {
            self.by_key.remove(&key);
        }
        self.forget_stale_deadlines();
        Some(entry.flow)
    }

    /// Drops the deadlines of flows that are gone once they are most of the heap, so that many short flows with
    /// distant deadlines do not fill it.
    fn forget_stale_deadlines(&mut self) {
        if self.is_empty() {
            self.deadlines.clear();
        } else if self.deadlines.len() > 2 * self.len() + MAX_STALE_DEADLINES {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines
                .retain(|Reverse((at, id))| self.entry(*id).is_some_and(|entry| entry.armed == Some(*at)));
            self.deadlines = deadlines;
        }
    }

    /// Sets when `id` next wants attention; `None` is never.
    pub fn set_deadline(&mut self, id: FlowId, deadline: Option<Instant>) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.deadline = deadline;
        let Some(deadline) = deadline else { return };
        if entry.armed.is_none_or(|armed| deadline < armed) {
            entry.armed = Some(deadline);
            self.deadlines.push(Reverse((deadline, id)));
        }
    }

    /// When the next flow may want attention; possibly too early, never too late.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a flow whose deadline has come; the deadline is cleared.
    pub fn pop_due(&mut self, now: Instant) -> Option<FlowId> {
        while let Some(&Reverse((at, id))) = self.deadlines.peek() {
            if at > now {
                return None;
            }
            self.deadlines.pop();
            let Some(entry) = self.entry_mut(id) else { continue };
            if entry.armed != Some(at) {
                continue;
            }
            entry.armed = None;
            match entry.deadline {
                Some(deadline) if deadline <= now => {
                    entry.deadline = None;
                    return Some(id);
                }
                later => self.set_deadline(id, later),
            }
        }
        None
    }

    /// The key of `id`, if it has one.
    pub fn key(&self, id: FlowId) -> Option<FlowKey> {
        self.entry(id)?.key
    }

    /// All flows with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &F)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = FlowId { index: u32::try_from(index).ok()?, generation: slot.generation };
            Some((id, &slot.entry.as_ref()?.flow))
        })
    }

    fn entry(&self, id: FlowId) -> Option<&Entry<F>> {
        let slot = self.slots.get(id.index())?;
        if slot.generation == id.generation { slot.entry.as_ref() } else { None }
    }

    fn entry_mut(&mut self, id: FlowId) -> Option<&mut Entry<F>> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation == id.generation { slot.entry.as_mut() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ident: u16) -> FlowKey {
        FlowKey::Ping { port: PortId(0), guest: IpAddr::from([10, 0, 2, 100]), ident }
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    #[test]
    fn a_freed_key_serves_another_flow() {
        let mut table = Table::new(8);
        let old = table.insert(Some(key(1)), "old").expect("room");
        table.unkey(old);
        assert_eq!(table.find(&key(1)), None);
        let new = table.insert(Some(key(1)), "new").expect("a free key");
        table.remove(old);
        assert_eq!(table.find(&key(1)), Some(new));
    }

    #[test]
    fn a_number_of_a_removed_flow_finds_nothing() {
        let mut table = Table::new(8);
        let old = table.insert(Some(key(1)), 'a').expect("room");
        assert_eq!(table.remove(old), Some('a'));
        let new = table.insert(Some(key(1)), 'b').expect("room");
        assert_eq!((old.index(), table.get(old)), (new.index(), None));
        assert_eq!(table.find(&key(1)), Some(new));
    }

    #[test]
    fn full_table_and_taken_key_refuse() {
        let mut table = Table::new(2);
        assert!(table.insert(Some(key(1)), 'a').is_some());
        assert!(table.insert(Some(key(1)), 'b').is_none());
        assert!(table.insert(None, 'c').is_some());
        assert!(table.insert(None, 'd').is_none());
    }

    #[test]
    fn an_extended_deadline_fires_once_and_at_the_later_time() {
        let mut table = Table::new(2);
        let id = table.insert(None, 'a').expect("room");
        table.set_deadline(id, Some(at(10)));
        table.set_deadline(id, Some(at(20)));
        assert_eq!(table.pop_due(at(10)), None);
        assert_eq!(table.next_deadline(), Some(at(20)));
        assert_eq!(table.pop_due(at(20)), Some(id));
        assert_eq!(table.pop_due(at(99)), None);
    }

    #[test]
    fn deadlines_of_flows_that_are_gone_do_not_pile_up() {
        let mut table = Table::new(2);
        let lives = table.insert(None, 'a').expect("room");
        table.set_deadline(lives, Some(at(5000)));
        for second in 0..5000 {
            let id = table.insert(None, 'b').expect("room");
            table.set_deadline(id, Some(at(1000 + second)));
            table.remove(id);
        }
        assert!(table.deadlines.len() <= 2 + MAX_STALE_DEADLINES, "{}", table.deadlines.len());
        assert_eq!(table.pop_due(at(4999)), None);
        assert_eq!(table.pop_due(at(5000)), Some(lives));
    }

    #[test]
    fn a_closer_deadline_fires_early_and_not_again() {
        let mut table = Table::new(2);
        let id = table.insert(None, 'a').expect("room");
        table.set_deadline(id, Some(at(20)));
        table.set_deadline(id, Some(at(5)));
        assert_eq!(table.pop_due(at(5)), Some(id));
        assert_eq!(table.pop_due(at(30)), None);
    }
}
