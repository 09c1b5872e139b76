//! Every `unsafe` block and raw kernel interface, behind safe functions.
//!
//! What nix already offers safely is called directly from where it is needed; what is here is the rest.

pub mod link;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod signal;
