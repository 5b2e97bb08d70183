//! The parts of the binding itself: attaching to the interpreter and detaching from it, and the
//! conversion of arguments and results.

pub(super) mod attach;
pub(super) mod attached_lock;
pub(super) mod context;
pub(super) mod enums;
pub(super) mod exceptions;
pub(super) mod forced_unwind;
pub(super) mod frames;
pub(super) mod home;
pub(super) mod host;
pub(super) mod interned;
pub(super) mod interruption;
pub(super) mod lazy_arg;
pub(super) mod pickling;
pub(super) mod raised;
pub(super) mod raw_frames;
pub(super) mod runnable;
pub(super) mod seconds;
pub(super) mod surroundings;
pub(super) mod swallow;
