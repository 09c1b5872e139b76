//! What can be wanted of containers that are on record.

use std::time::Duration;

/// A command about containers. Each is called by its name, or the beginning of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainersCall {
    /// `rnet ps`.
    List {
        /// Those that have ended, too.
        all: bool,
        /// In which shape.
        shape: ListShape,
    },
    /// `rnet inspect`: all that is known, as JSON.
    Inspect {
        /// Whose.
        names: Vec<String>,
    },
    /// `rnet logs`.
    Logs(Logs),
    /// `rnet stop`.
    Stop {
        /// Whom.
        names: Vec<String>,
        /// How long they may take; `None` is as each was made.
        patience: Option<Duration>,
    },
    /// `rnet kill`.
    Kill {
        /// Whom.
        names: Vec<String>,
        /// With this signal.
        signal: i32,
    },
    /// `rnet stats`: what containers use.
    Stats {
        /// Whose; none is of all that run.
        names: Vec<String>,
        /// Not again and again.
        once: bool,
        /// As JSON.
        json: bool,
    },
    /// `rnet pause` and `rnet unpause`.
    Pause {
        /// Whom.
        names: Vec<String>,
        /// They stand still, or go on.
        paused: bool,
    },
    /// `rnet wait`.
    Wait {
        /// For whose end.
        names: Vec<String>,
    },
    /// `rnet rm`.
    Remove {
        /// Whom.
        names: Vec<String>,
        /// Those that run, too, and without complaint if there is none.
        force: bool,
    },
}

/// How containers are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListShape {
    /// A table.
    Table,
    /// Ids alone, one a line.
    Ids,
    /// A JSON array.
    Json,
}

/// `rnet logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// Whose output.
    pub name: String,
    /// Go on with what comes, until the container ends.
    pub follow: bool,
    /// What was written since then.
    pub since: Option<Since>,
    /// Of what is there, so many lines at the end.
    pub tail: Option<usize>,
    /// Each line's time before it.
    pub timestamps: bool,
}

/// A moment in the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// So long after 1970 began.
    Epoch(Duration),
    /// As RFC 3339 writes it.
    Moment(String),
}
