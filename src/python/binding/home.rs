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
//! | the layout of thread states and frames: structures below; `_Py_DebugOffsets` | 3.10-3.12; 3.13-3.15 | `test_i41_homes_are_known`; a layout that does not fit is not used, and then no scope is ever suspended |
//! | the opcodes that enter a block: `SETUP_WITH`; `BEFORE_WITH`; `CALL` behind `LOAD_SPECIAL` | 3.10; 3.11-3.13; 3.14-3.15 | `test_i41_homes_are_known` |
//! | the exception table's first entry behind it is the block's | 3.11-3.15 | `test_i41_a_signal_at_any_bytecode_of_nested_scopes` |
#![allow(unsafe_code)] // reads the interpreter's structures

use std::cell::Cell;
use std::mem::offset_of;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use super::frames::{
    back, code, entries, first_handler_behind, frame, is_jump, last_instruction, leads_to,
};
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

/// Where to find things in the interpreter's structures: offsets in bytes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// In a thread state: the current frame, or (`cframe`) a structure that has it.
    current: usize,
    cframe: Option<usize>,
    /// In a frame: the calling one.
    previous: usize,
    place: PlaceLayout,
    /// In a frame object: the frame. `None`: the object is the frame.
    frame_of_object: Option<usize>,
    /// The instruction that enters a block, or (`true`) the one before it.
    with: (u8, bool),
}

#[derive(Clone, Copy, Debug)]
enum PlaceLayout {
    /// A pointer to the instruction, and a byte that says what the frame is part of.
    Pointer { instruction: usize, owner: usize },
    /// The number of the instruction in the code, and a pointer that a generator's frame alone has.
    Number,
}

/// 3.10, where a frame is an object.
#[repr(C)]
struct Frame310 {
    head: ffi::PyVarObject,
    back: usize,
    code: *const Code310,
    others: [usize; 5],
    stack_depth: i32,
    flags: [u8; 2],
    generator: usize,
    last: i32,
}

#[repr(C)]
struct Code310 {
    head: ffi::PyObject,
    others: [i32; 7],
    code: *mut ffi::PyObject,
}

#[repr(C)]
struct State310 {
    others: [usize; 3],
    frame: usize,
}

/// 3.11 and 3.12.
#[repr(C)]
struct State311 {
    pointers: [usize; 3],
    numbers: [i32; 7],
    cframe: usize,
}

#[repr(C)]
struct CFrame311 {
    use_tracing: u8,
    frame: usize,
}

#[repr(C)]
struct Frame311 {
    others: [usize; 6],
    previous: usize,
    instruction: usize,
    stack_top: i32,
    is_entry: u8,
    owner: u8,
}

#[repr(C)]
struct Frame312 {
    code: usize,
    previous: usize,
    others: [usize; 5],
    instruction: usize,
    stack_top: i32,
    return_offset: u16,
    owner: u8,
}

/// Values of `owner`: a generator's frame, and from here on those of no Python function.
const GENERATOR: u8 = 1;
const INTERNAL: u8 = 3;

impl Layout {
    /// The layout of this interpreter, or `None` if it is not known, or does not fit.
    fn find(py: Python<'_>) -> PyResult<Option<Layout>> {
        let version = py.version_info();
        let names = py.import("opcode")?.getattr("opmap")?;
        let with = |name| names.get_item(name)?.extract::<u8>();
        let frame_of_object = Some(size_of::<ffi::PyObject>() + size_of::<usize>());
        let layout = match (version.major, version.minor) {
            (3, 10) => Layout {
                current: offset_of!(State310, frame),
                cframe: None,
                previous: offset_of!(Frame310, back),
                place: PlaceLayout::Number,
                frame_of_object: None,
                with: (with("SETUP_WITH")?, false),
            },
            (3, 11) => Layout {
                current: offset_of!(State311, cframe),
                cframe: Some(offset_of!(CFrame311, frame)),
                previous: offset_of!(Frame311, previous),
                place: PlaceLayout::Pointer {
                    instruction: offset_of!(Frame311, instruction),
                    owner: offset_of!(Frame311, owner),
                },
                frame_of_object,
                with: (with("BEFORE_WITH")?, false),
            },
            (3, 12) => Layout {
                current: offset_of!(State311, cframe),
                cframe: Some(0),
                previous: offset_of!(Frame312, previous),
                place: PlaceLayout::Pointer {
                    instruction: offset_of!(Frame312, instruction),
                    owner: offset_of!(Frame312, owner),
                },
                frame_of_object,
                with: (with("BEFORE_WITH")?, false),
            },
            (3, minor @ 13..=15) => {
                // The numbers of the words in `_Py_DebugOffsets`.
                let (current, frame) = match minor {
                    13 => (23, 28),
                    14 => (26, 31),
                    _ => (26, 39),
                };
                let Some(offsets) = debug_offsets() else {
                    return Ok(None);
                };
                Layout {
                    current: offsets(current),
                    cframe: None,
                    previous: offsets(frame + 1),
                    place: PlaceLayout::Pointer {
                        instruction: offsets(frame + 3),
                        owner: offsets(frame + 5),
                    },
                    frame_of_object,
                    with: match minor {
                        13 => (with("BEFORE_WITH")?, false),
                        _ => (with("LOAD_SPECIAL")?, true),
                    },
                }
            }
            _ => return Ok(None),
        };
        // SAFETY: attached; the offsets lie within a thread state by the version's own word, or by its
        // headers. What is read there is compared with the interpreter's answer before it is followed.
        let current = unsafe { layout.current_frame(ffi::PyThreadState_Get()) };
        let fits = frame(py).is_some_and(|frame| layout.of_object(&frame) == current);
        Ok(fits.then_some(layout))
    }

    /// The current frame of the thread with this state; 0 if no Python function runs.
    ///
    /// # Safety
    /// The state is the calling thread's.
    unsafe fn current_frame(&self, state: *mut ffi::PyThreadState) -> usize {
        // SAFETY: as the caller says, and the layout is this version's.
        unsafe {
            let current = read::<usize>(state as usize, self.current);
            match self.cframe {
                Some(frame) if current != 0 => read(current, frame),
                _ => current,
            }
        }
    }

    /// The address of an object's frame.
    fn of_object(&self, frame: &Bound<'_, PyAny>) -> usize {
        let object = frame.as_ptr() as usize;
        // SAFETY: a live frame object.
        self.frame_of_object
            .map_or(object, |offset| unsafe { read(object, offset) })
    }

    /// What the frame is part of, as `owner` says it.
    ///
    /// # Safety
    /// A frame of the calling thread.
    unsafe fn owner(&self, frame: usize) -> u8 {
        // SAFETY: as the caller says.
        unsafe {
            match self.place {
                PlaceLayout::Pointer { owner, .. } => read(frame, owner),
                PlaceLayout::Number => {
                    u8::from(read::<usize>(frame, offset_of!(Frame310, generator)) != 0)
                }
            }
        }
    }

    /// The address of the instruction that the frame is at.
    ///
    /// # Safety
    /// A frame of the calling thread, and a Python function's.
    unsafe fn place(&self, frame: usize) -> usize {
        // SAFETY: as the caller says.
        unsafe {
            match self.place {
                PlaceLayout::Pointer { instruction, .. } => read(frame, instruction),
                PlaceLayout::Number => {
                    let frame = &*(frame as *const Frame310);
                    let code = ffi::PyBytes_AsString((*frame.code).code) as usize;
                    code.wrapping_add_signed(frame.last as isize * 2)
                }
            }
        }
    }

    /// Does the instruction at this address enter a block? False if a tool has replaced it: then the
    /// code object has the original.
    ///
    /// # Safety
    /// The place of a frame of the calling thread.
    unsafe fn is_with(&self, place: usize) -> bool {
        let (opcode, before) = self.with;
        // SAFETY: as the caller says; behind LOAD_SPECIAL's kind there is always an instruction before.
        unsafe { read::<u8>(place - usize::from(before) * 2, 0) == opcode }
    }
}

/// # Safety
/// There is a value of this type.
unsafe fn read<T: Copy>(base: usize, offset: usize) -> T {
    // SAFETY: as the caller says.
    unsafe { *((base + offset) as *const T) }
}

/// The words of `_Py_DebugOffsets`, which CPython has for debuggers.
#[cfg(unix)]
fn debug_offsets() -> Option<impl Fn(usize) -> usize> {
    // SAFETY: no precondition; the name is a C string.
    let runtime = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyRuntime".as_ptr()) } as usize;
    // SAFETY: the symbol is a structure that begins with these eight bytes.
    let is_there = runtime != 0 && unsafe { read::<[u8; 8]>(runtime, 0) } == *b"xdebugpy";
    // SAFETY: the structure has more than 64 words.
    let word = move |word: usize| unsafe { read::<u64>(runtime, word * 8) };
    // An offset within a structure of a few thousand bytes.
    is_there.then_some(move |at| usize::try_from(word(at)).unwrap_or(0))
}

#[cfg(not(unix))]
fn debug_offsets() -> Option<fn(usize) -> usize> {
    None
}

/// Found when the first block is entered.
static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();

#[inline]
fn layout(py: Python<'_>) -> PyResult<Option<&'static Layout>> {
    if let Some(known) = LAYOUT.get() {
        return Ok(known.as_ref());
    }
    let found = Layout::find(py)?;
    Ok(LAYOUT.get_or_init(|| found).as_ref())
}

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
    // SAFETY: attached, so the state is this thread's, and the frame one that runs.
    let (frame, owner) = unsafe {
        let frame = layout.current_frame(ffi::PyThreadState_Get());
        if frame == 0 {
            return Ok(Home::NATIVE);
        }
        (frame, layout.owner(frame))
    };
    if owner < INTERNAL && owner != GENERATOR {
        // SAFETY: as above, and it is a Python function's.
        let place = unsafe { layout.place(frame) };
        // SAFETY: as above.
        if unsafe { layout.is_with(place) } {
            return Ok(Home {
                frame,
                place,
                suspendable: false,
            });
        }
    }
    home_by_objects(py, layout)
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
        // SAFETY: a frame that runs, for it is on the stack.
        let suspendable = unsafe { layout.owner(raw) } == GENERATOR;
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
            // SAFETY: as above.
            let place = unsafe { layout.place(raw) };
            return Ok(Home {
                frame: raw,
                place,
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
        // SAFETY: a frame that runs, for it is on the stack.
        let is_generator = unsafe { layout.owner(raw) } == GENERATOR;
        if is_generator
            && !driver
                .as_ref()
                .is_some_and(|driver| is_named(driver, &OPENERS[..1]))
        {
            return Ok(Home {
                frame: raw,
                place: 0,
                suspendable: true,
            });
        }
        next = driver;
    }
    Ok(Home {
        frame: layout.of_object(at),
        place: 0,
        suspendable: false,
    })
}

fn flags(frame: &Bound<'_, PyAny>) -> PyResult<u32> {
    code(frame)?
        .getattr(intern!(frame.py(), "co_flags"))?
        .extract()
}

fn is_named(frame: &Bound<'_, PyAny>, names: &[&str]) -> bool {
    let py = frame.py();
    let name = || {
        let name = code(frame)?.getattr(intern!(py, "co_name"))?;
        PyResult::Ok(name.cast_into::<PyString>()?)
    };
    name().is_ok_and(|name| name.to_str().is_ok_and(|name| names.contains(&name)))
}

/// Is the frame at the instruction that enters a block?
fn enters_a_block(layout: &Layout, frame: &Bound<'_, PyAny>) -> PyResult<bool> {
    let at = last_instruction(frame)?;
    Ok(code_of(frame)?.is_some_and(|code| is_with(layout, code.as_bytes(), at as usize)))
}

fn code_of<'py>(frame: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let bytes = code(frame)?.getattr(intern!(frame.py(), "co_code"))?;
    Ok(bytes.cast_into().ok())
}

fn is_with(layout: &Layout, code: &[u8], at: usize) -> bool {
    let (opcode, before) = layout.with;
    let at = at.checked_sub(usize::from(before) * 2);
    at.and_then(|at| code.get(at)) == Some(&opcode)
}

// ---------------------------------------------------------------------- looking for it later

/// See [`Host::presence`](crate::host::Host::presence).
pub(in crate::python) fn presence(home: Home) -> Presence {
    // SAFETY: it may be called at any time; the state is the calling thread's, or null.
    let state = unsafe { ffi::PyGILState_GetThisThreadState() };
    let layout = LAYOUT.get().and_then(Option::as_ref);
    let Some(layout) = layout.filter(|_| !state.is_null()) else {
        return Presence::Here(usize::MAX);
    };
    let mut depth = 0;
    // SAFETY: the state is this thread's; its frames do not change meanwhile.
    let mut at = unsafe { layout.current_frame(state) };
    while at != 0 && at != home.frame {
        // SAFETY: a frame of the chain.
        at = unsafe { read(at, layout.previous) };
        depth += 1;
    }
    if at == 0 {
        return match home {
            Home {
                suspendable: true, ..
            } => Presence::Away,
            Home { place: 0, .. } => Presence::Here(usize::MAX),
            _ if has_greenlets() => Presence::Away,
            _ => Presence::Gone,
        };
    }
    if home.place == 0 {
        return Presence::Here(depth);
    }
    // SAFETY: a frame of the chain; only those of Python functions are homes.
    let place = unsafe { layout.place(at) };
    // At the call of `__enter__` itself the block is being entered, or was just entered.
    let is_inside = place == home.place
        || is_place_inside(home.place, place, || {
            attach(|py| look_inside(py, layout, home, place).unwrap_or(true))
        });
    if is_inside {
        Presence::Here(depth)
    } else {
        Presence::Gone
    }
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
fn look_inside(py: Python<'_>, layout: &Layout, home: Home, place: usize) -> PyResult<bool> {
    let mut next = frame(py);
    while let Some(at) = next {
        if layout.of_object(&at) != home.frame {
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
        if !is_with(layout, bytes.as_bytes(), opened as usize) {
            return Ok(false);
        }
        let code = code(&at)?;
        let Some(table) = code.getattr_opt(intern!(py, "co_exceptiontable"))? else {
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
            || is_jump(&code, here)?);
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
                let modules = py.import("sys")?.getattr(intern!(py, "modules"))?;
                modules.contains(intern!(py, "greenlet"))
            })
        })
        .is_none_or(|loaded| loaded.unwrap_or(true))
    };
    if !LOADED.load(Ordering::Relaxed) && is_loaded() {
        LOADED.store(true, Ordering::Relaxed);
    }
    LOADED.load(Ordering::Relaxed)
}
