//! Where code was when it was stopped.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// Calls, the outermost first, in the host's words. The words are found when somebody reads them:
/// that takes longer than a kill, and mostly nobody does.
#[derive(Clone)]
pub struct Stack(Arc<Words>);

struct Words {
    found: OnceLock<Box<str>>,
    find: Box<dyn Fn() -> String + Send + Sync>,
}

impl Stack {
    /// `find` may run code of the host, on any thread, and more than once.
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
        // Nobody waits for another who finds them: the host may let that one go on only when this
        // one has let go of the host.
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
