//! What can be asked about named layers.

use std::path::PathBuf;

/// A question about them, or an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayersCall {
    /// Where they are, one directory each; it need not exist.
    pub directory: PathBuf,
    /// What is asked.
    pub verb: LayersVerb,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayersVerb {
    /// Which there are.
    List {
        /// As JSON.
        json: bool,
    },
    /// To remove these.
    Remove {
        /// Their names.
        names: Vec<String>,
    },
}
