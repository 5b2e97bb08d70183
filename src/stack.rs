//! Where a task was when it was killed or abandoned.
//!
//! A kill must not wait for the formatting of a traceback, which needs the host and can take longer than
//! the kill. So a [`Stack`] keeps the data needed to format it, and does so when it is read for the first
//! time. Most stacks are never read.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// The call stack of a thread, the outermost call first, as the host prints it. Formatted lazily;
/// clones share the text.
#[derive(Clone)]
pub struct Stack(Arc<Words>);

/// The text, and how to make it.
struct Words {
    /// Set once, by the first reader that has made the text.
    found: OnceLock<Box<str>>,
    /// Formats the stack. Called with no lock of the core held.
    find: Box<dyn Fn() -> String + Send + Sync>,
}

impl Stack {
    /// A stack that `find` formats. It may run code of the host, on any thread that reads the stack, and
    /// runs more than once if several threads read it at once.
    pub fn new(find: impl Fn() -> String + Send + Sync + 'static) -> Stack {
        Stack(Arc::new(Words {
            found: OnceLock::new(),
            find: Box::new(find),
        }))
    }
}

impl Deref for Stack {
    type Target = str;

    fn deref(&self) -> &str {
        if let Some(found) = self.0.found.get() {
            return found;
        }
        // Not `get_or_init`, which would block a second reader until the first is done: the first may
        // need the host's lock, which the second holds.
        let found = (self.0.find)().into();
        self.0.found.get_or_init(|| found)
    }
}

impl From<&str> for Stack {
    fn from(words: &str) -> Stack {
        let words = words.to_owned();
        Stack::new(move || words.clone())
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
