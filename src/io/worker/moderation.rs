//! When the worker lets datagrams gather before it looks again.
//!
//! A worker that keeps up with a flood would wake for every few datagrams, and take the processor each time from
//! whoever sends or reads them. As drivers of network cards do (interrupt moderation), it pauses briefly between such
//! turns, so that one wake, one call and one frame serve more of them. A single request, a short burst and turns in
//! which there is anything else to do are never held up.

use std::time::Duration;

/// A single message in a turn is no flood.
const FLOOD_MESSAGES: usize = 2;
/// So many turns of a flood come in a row before the first pause.
const FLOOD_TURNS: u32 = 3;
/// At 600,000 datagrams a second 18 gather meanwhile; a receive buffer of the usual 208 KiB holds 180.
const PAUSE: Duration = Duration::from_micros(30);

/// What the current turn and those before it were like.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    messages: usize,
    other_work: bool,
    flood_turns: u32,
}

impl Moderation {
    /// So many messages were received from one socket.
    pub(super) fn received(&mut self, messages: usize) {
        self.messages += messages;
    }

    /// Something else than datagrams from the host wanted to be done.
    pub(super) fn other_work(&mut self) {
        self.other_work = true;
    }

    /// Ends a turn. How long to let datagrams gather, if at all.
    pub(super) fn end_turn(&mut self) -> Option<Duration> {
        let turn = std::mem::take(self);
        let flood = turn.messages >= FLOOD_MESSAGES && !turn.other_work;
        self.flood_turns = if flood { turn.flood_turns.saturating_add(1) } else { 0 };
        (self.flood_turns > FLOOD_TURNS).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_flood_is_let_gather() {
        let mut moderation = Moderation::default();
        for _ in 0..FLOOD_TURNS {
            assert_eq!(turn(&mut moderation, FLOOD_MESSAGES, false), None, "it may be a burst");
        }
        assert_eq!(turn(&mut moderation, FLOOD_MESSAGES, false), Some(PAUSE));
        assert_eq!(turn(&mut moderation, 0, false), None, "it is over");
        assert_eq!(turn(&mut moderation, FLOOD_MESSAGES, false), None);
    }

    #[test]
    fn nothing_else_waits_for_a_flood() {
        let mut moderation = Moderation::default();
        for turns in 0..3 * FLOOD_TURNS {
            assert_eq!(turn(&mut moderation, 32, turns % FLOOD_TURNS == 0), None);
        }
    }

    fn turn(moderation: &mut Moderation, messages: usize, other_work: bool) -> Option<Duration> {
        moderation.received(messages);
        if other_work {
            moderation.other_work();
        }
        moderation.end_turn()
    }
}
