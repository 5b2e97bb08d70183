//! Where a block was opened, and whether it is on its thread's stack: the answers for `scope::stack`.
//!
//! Guarantees:
//! 1. [`home_of_block`] names the block that a scope belongs to: the `with` statement that calls
//!    `__enter__`; for a context manager that enters the scope in its own `__enter__`, also one made of a
//!    generator by `contextlib`, the statement that enters the context manager. A statement of a coroutine
//!    or an asynchronous generator is refused.
//! 2. [`presence`] says `Gone` only if the block's end was skipped, and `Here` only if the block is on the
//!    stack. A block that is not one of a statement (it was entered by a call, as of
//!    `ExitStack.enter_context`) is there until its end runs or its object is freed, unless it was
//!    entered below a generator: then while the generator is on the stack.
//!
//! How. A home is the address of the interpreter's frame, and that of the instruction in it that calls
//! `__enter__`. Both are read from the thread's state in a few loads: no frame object is made. Another
//! call may get the same address for its frame later, so the address alone proves nothing. A block is on
//! the stack if a frame with its address is, the instruction belongs to the code of that frame, and the
//! frame is now at a place inside the block, by the exception table of the code. A second activation that
//! passes these three tests has entered the same statement, and so a scope of the same home: in that moment
//! `scope::stack` drops the scope of the first one.
//!
//! Places inside a block that no entry of the table covers: a jump (the interpreter runs signal handlers
//! there), and the calls of `__exit__`.
//!
//! The thread reads its own frames only. They do not change while it is in native code, be it attached or
//! not. The tables are Python objects: for them it attaches, and keeps the answers of the last few places,
//! which depend on the code alone.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | the exception table's first entry behind it is the block's | 3.11-3.15 | `test_i41_a_signal_at_any_bytecode_of_nested_scopes` |

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::python::binding::interned::interned;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::frames::{
    self, back, code, entries, first_handler_behind, frame, is_jump_back, last_instruction,
    leads_to,
};
use super::raw_frames::{Layout, RawFrame, known_layout, layout};
use crate::error::ScopeMisuse;
use crate::fork;
use crate::host::{Home, Presence};
use crate::python::binding::attach::attach;
use crate::python::binding::exceptions;

/// Of `co_flags`: a coroutine, a generator that is used as one, an asynchronous generator.
const COROUTINE: u32 = 0x80 | 0x100 | 0x200;

/// The functions that enter a context manager on behalf of their callers.
const OPENERS: [&str; 4] = [
    "__enter__",
    "enter_context",
    "enterContext",
    "_enter_context",
];

/// True if blocks can be found on the stack: for tests.
#[pyfunction]
pub(in crate::python) fn knows_homes(py: Python<'_>) -> PyResult<bool> {
    Ok(layout(py)?.is_some())
}

// ---------------------------------------------------------------------- the home of a new block

/// The home of the block whose `__enter__` is called now.
///
/// # Errors
/// `ScopeMisuse` if it is a coroutine's or an asynchronous generator's.
#[inline]
pub(in crate::python) fn home_of_block(py: Python<'_>) -> PyResult<Home> {
    let Some(layout) = layout(py)? else {
        return Ok(Home::NATIVE);
    };
    let home = layout.stack(|mut frames| match frames.next() {
        Some(frame) if frame.is_function() && frame.enters_block() => Ok(Home {
            frame: frame.address(),
            place: frame.place(),
            suspendable: false,
        }),
        Some(_) => home_by_objects(py, layout),
        None => Ok(Home::NATIVE),
    });
    home.unwrap_or(Ok(Home::NATIVE))
}

/// True if the `__enter__` that is called now is one of a `with` statement of a function that cannot be
/// suspended: such a block ends before the function's call does.
pub(in crate::python) fn is_block_of_function(py: Python<'_>) -> bool {
    let of_function = |layout: &Layout| {
        layout.stack(|mut frames| {
            let frame = frames.next();
            frame.is_some_and(|frame| frame.is_function() && frame.enters_block())
        })
    };
    let layout = layout(py).ok().flatten();
    layout.and_then(of_function).unwrap_or(false)
}

/// [`home_of_block`] for a generator's block, and one that was entered by a call.
#[cold]
fn home_by_objects(py: Python<'_>, layout: &Layout) -> PyResult<Home> {
    let mut next = frame(py);
    while let Some(at) = next {
        let flags = flags(&at)?;
        if flags & COROUTINE != 0 {
            return Err(exceptions::misuse(py, ScopeMisuse::InCoroutine));
        }
        let driver = back(&at)?;
        let raw = layout.of_object(&at);
        let suspendable = raw.is_generator();
        if suspendable {
            if let Some(driver) = driver
                .as_ref()
                .filter(|driver| is_named(driver, &OPENERS[..1]))
            {
                next = back(driver)?;
                continue;
            }
        }
        if enters_a_block(layout, &at)? {
            return Ok(Home {
                frame: raw.address(),
                place: raw.place(),
                suspendable,
            });
        }
        if is_named(&at, &OPENERS) {
            next = driver;
            continue;
        }
        return by_hand(layout, &at);
    }
    Ok(Home::NATIVE)
}

/// The home of a block that was entered by a call in this frame.
fn by_hand(layout: &Layout, at: &Bound<'_, PyAny>) -> PyResult<Home> {
    let mut next = Some(at.clone());
    while let Some(around) = next {
        let raw = layout.of_object(&around);
        let driver = back(&around)?;
        if raw.is_generator()
            && !driver
                .as_ref()
                .is_some_and(|driver| is_named(driver, &OPENERS[..1]))
        {
            return Ok(Home {
                frame: raw.address(),
                place: 0,
                suspendable: true,
            });
        }
        next = driver;
    }
    Ok(Home {
        frame: layout.of_object(at).address(),
        place: 0,
        suspendable: false,
    })
}

fn flags(frame: &Bound<'_, PyAny>) -> PyResult<u32> {
    code(frame)?
        .getattr(interned!(frame.py(), "co_flags"))?
        .extract()
}

fn is_named(frame: &Bound<'_, PyAny>, names: &[&str]) -> bool {
    let py = frame.py();
    let name = || {
        let name = code(frame)?.getattr(interned!(py, "co_name"))?;
        PyResult::Ok(name.cast_into::<PyString>()?)
    };
    name().is_ok_and(|name| name.to_str().is_ok_and(|name| names.contains(&name)))
}

/// Is the frame at the instruction that enters a block?
fn enters_a_block(layout: &Layout, frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let at = last_instruction(frame)?;
    Ok(code_of(frame)?.is_some_and(|code| layout.enters_block(code.as_bytes(), at as usize)))
}

fn code_of<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let bytes = code(frame)?.getattr(interned!(frame.py(), "co_code"))?;
    Ok(bytes.cast_into().ok())
}

// ---------------------------------------------------------------------- looking for it later

/// See [`Host::presence`](crate::host::Host::presence).
pub(in crate::python) fn presence(home: Home) -> Presence {
    let found = known_layout().and_then(|layout| {
        layout.stack(|frames| {
            let mut frames = frames.enumerate();
            let frame = frames.find(|(_, frame)| frame.address() == home.frame);
            presence_of(layout, home, frame)
        })
    });
    found.unwrap_or(Presence::Here(usize::MAX))
}

/// As [`presence`]. `frame`: its depth, and the frame with the address that the home has.
fn presence_of(layout: &Layout, home: Home, frame: Option<(usize, RawFrame<'_>)>) -> Presence {
    let Some((depth, frame)) = frame else {
        return match home {
            Home {
                suspendable: true, ..
            } => Presence::Away,
            Home { place: 0, .. } => Presence::Here(usize::MAX),
            _ if has_greenlets() => Presence::Away,
            _ => Presence::Gone,
        };
    };
    if home.place == 0 {
        return Presence::Here(depth);
    }
    let place = frame.place(); // only frames of Python functions are homes
    // At the call of `__enter__` itself the block is being entered, or was just entered.
    let is_inside = place == home.place
        || is_place_inside(home.place, place, || {
            attach(|py| look_inside(py, layout, home, place, frames::frame(py)).unwrap_or(true))
        });
    if is_inside {
        Presence::Here(depth)
    } else {
        Presence::Gone
    }
}

/// Is the block with this home on the stack of a thread with this innermost frame? While that thread can run no
/// code of the interpreter's.
pub(in crate::python) fn is_on_stack(
    py: Python<'_>,
    innermost: &Bound<'_, PyAny>,
    home: Home,
) -> PyResult<bool> {
    let Some(layout) = known_layout().filter(|_| !home.is_native()) else {
        return Ok(true);
    };
    let mut next = Some(innermost.clone());
    while let Some(at) = next {
        let raw = layout.of_object(&at);
        if raw.address() != home.frame {
            next = back(&at)?;
            continue;
        }
        let place = raw.place();
        return Ok(home.place == 0
            || place == home.place
            || look_inside(py, layout, home, place, Some(at))?);
    }
    Ok(home.place == 0)
}

/// Is the frame's place inside the block that the other place opens? `look` finds it out.
fn is_place_inside(opened: usize, place: usize, look: impl FnOnce() -> Option<bool>) -> bool {
    const KEPT: usize = 16;
    thread_local! {
        /// Answers, by the two places.
        static KNOWN: [Cell<(usize, usize, bool)>; KEPT] =
            const { [const { Cell::new((0, 0, false)) }; KEPT] };
    }
    let slot = (opened ^ place) / 2 % KEPT;
    let known = KNOWN.try_with(|known| known[slot].get()).ok();
    match known {
        Some((for_opened, for_place, answer)) if (for_opened, for_place) == (opened, place) => {
            answer
        }
        _ => {
            let Some(answer) = fork::outside(look) else {
                return true; // the interpreter shuts down
            };
            let _ = KNOWN.try_with(|known| known[slot].set((opened, place, answer)));
            answer
        }
    }
}

/// Is the frame of this home, which is at `place`, inside the block?
fn look_inside(
    py: Python<'_>,
    layout: &Layout,
    home: Home,
    place: usize,
    innermost: Option<Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let mut next = innermost;
    while let Some(at) = next {
        if layout.of_object(&at).address() != home.frame {
            next = back(&at)?;
            continue;
        }
        let here = last_instruction(&at)?;
        // Both places are in the same copy of the code, if they are in the same code.
        let distance = (place as i128) - (home.place as i128);
        let Some(bytes) = code_of(&at)? else {
            return Ok(true);
        };
        let Ok(opened) = u32::try_from(i128::from(here) - distance) else {
            return Ok(false); // another function's frame
        };
        if !layout.enters_block(bytes.as_bytes(), opened as usize) {
            return Ok(false);
        }
        let code = code(&at)?;
        let Some(table) = code.getattr_opt(interned!(py, "co_exceptiontable"))? else {
            let end = end_of_setup(bytes.as_bytes(), opened);
            return Ok(opened < here && here <= end + BEHIND_HANDLER);
        };
        let table = table.cast_into::<PyBytes>()?;
        let table = table.as_bytes();
        let Some(handler) = first_handler_behind(table, opened) else {
            return Ok(true);
        };
        let is_leaving = |end: u32| (end..=end + BEHIND_END).contains(&here);
        let leaves = entries(table).any(|entry| entry.handler == handler && is_leaving(entry.end));
        return Ok(leaves
            || (handler..=handler + BEHIND_HANDLER).contains(&here)
            || leads_to(table, here, handler)
            || is_jump_back(&code, here)?);
    }
    Ok(true)
}

/// In bytes of code: where the calls of `__exit__` lie behind the end of the covered code, and behind the
/// beginning of the handler. Three constants, and up to 3.11 one more instruction, come first.
const BEHIND_END: u32 = 12;
const BEHIND_HANDLER: u32 = 4;

/// 3.10: the handler that `SETUP_WITH` sets up.
fn end_of_setup(code: &[u8], at: u32) -> u32 {
    const EXTENDED_ARG: u8 = 144;
    let (mut argument, mut shift, mut unit) = (0, 0, at as usize);
    loop {
        argument |= u32::from(code.get(unit + 1).copied().unwrap_or(0)) << shift;
        shift += 8;
        if shift > 24 || unit < 2 || code[unit - 2] != EXTENDED_ARG {
            return at + 2 + argument * 2;
        }
        unit -= 2;
    }
}

/// May a thread have more than one stack? Then a block that is not on this one may be on another.
fn has_greenlets() -> bool {
    static LOADED: AtomicBool = AtomicBool::new(false);
    let is_loaded = || {
        fork::outside(|| {
            attach(|py| {
                let modules = py.import("sys")?.getattr(interned!(py, "modules"))?;
                modules.contains(interned!(py, "greenlet"))
            })
        })
        .is_none_or(|loaded| loaded.unwrap_or(true))
    };
    if !LOADED.load(Ordering::Relaxed) && is_loaded() {
        LOADED.store(true, Ordering::Relaxed);
    }
    LOADED.load(Ordering::Relaxed)
}
