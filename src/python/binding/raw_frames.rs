//! The interpreter's own frames: the calls that the calling thread is in, read in a few loads, without an
//! object for any of them.
//!
//! Guarantees: a [`RawFrame`] is on the calling thread's stack. The frames of a stack are lent to a function
//! ([`Layout::stack`]) that cannot keep them. They do not change while the thread is in native code, be it
//! attached or not; calls of Python code that it makes meanwhile come on top of them.
//!
//! How. Where the members of a structure are depends on the version. [`Layout::find`] has them from copies of
//! the version's headers, or from a table that the interpreter has for debuggers, and compares its answer
//! with the interpreter's. All reads are made by [`At::get`]. An [`At`] and a [`Member`] name the structure that
//! they belong to, and are made here alone.
//!
//! | fact relied on | versions | test that fails when it changes |
//! |---|---|---|
//! | the layout of thread states, frames and code: structures below; `_Py_DebugOffsets` | 3.10-3.12; 3.13-3.15 | `test_i41_homes_are_known`; a layout that does not fit is not used, and then no scope is ever suspended |
//! | the opcodes that enter a block: `SETUP_WITH`; `BEFORE_WITH`; `CALL` behind `LOAD_SPECIAL` | 3.10; 3.11-3.13; 3.14-3.15 | `test_i41_homes_are_known` |
//! | a frame's variables are behind its other members | 3.10-3.12 | `test_interruption.py` |
#![allow(unsafe_code)] // reads the interpreter's structures

use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::OnceLock;

use crate::python::binding::interned::interned;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::{attach, frames};

// ---------------------------------------------------------------------- structures of the interpreter

/// 3.10, where a frame is an object.
#[repr(C)]
struct Frame310 {
    head: ffi::PyVarObject,
    back: usize,
    code: usize,
    others: [usize; 5],
    stack_depth: i32,
    flags: [u8; 2],
    generator: usize,
    last: i32,
    line: i32,
    block: i32,
    state: i8,
    blocks: [[i32; 3]; 20],
    variables: [usize; 1],
}

#[repr(C)]
struct Code310 {
    head: ffi::PyObject,
    others: [i32; 7],
    code: usize,
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

/// The kinds of structures that are read, whatever their version.
#[derive(Clone, Copy, Debug)]
struct State;
#[derive(Clone, Copy, Debug)]
struct CFrame;
#[derive(Clone, Copy, Debug)]
struct Frame;
#[derive(Clone, Copy, Debug)]
struct FrameObject;
#[derive(Clone, Copy, Debug)]
struct Code;
#[derive(Clone, Copy, Debug)]
struct Instruction;
#[cfg(unix)]
#[derive(Clone, Copy, Debug)]
struct DebugOffsets;

/// A structure of the kind `S`, which is there as long as this value.
#[derive(Clone, Copy, Debug)]
struct At<S> {
    address: usize,
    /// On one thread.
    kind: PhantomData<*const S>,
}

/// Where structures of the kind `S` have a member of the type `T`.
#[derive(Clone, Copy, Debug)]
struct Member<S, T> {
    offset: usize,
    kind: PhantomData<fn(S) -> T>,
}

impl<S, T> Member<S, T> {
    const fn at(offset: usize) -> Self {
        Member {
            offset,
            kind: PhantomData,
        }
    }
}

impl<S: Copy> At<S> {
    /// There is such a structure at the address.
    const fn new(address: usize) -> Self {
        let kind = PhantomData;
        At { address, kind }
    }

    #[inline]
    fn get<T: Copy>(self, member: Member<S, T>) -> T {
        // SAFETY: there is a structure of this kind, and structures of this kind have such a member.
        unsafe { *((self.address + member.offset) as *const T) }
    }

    /// The structure that a pointer in this one leads to; `None` if the pointer is null.
    #[inline]
    fn follow<To: Copy>(self, member: Member<S, At<To>>) -> Option<At<To>> {
        let address = self.get(Member::<S, usize>::at(member.offset));
        (address != 0).then_some(At::new(address))
    }
}

// ---------------------------------------------------------------------- the layout of this interpreter

/// Where the interpreter's structures have their members.
#[derive(Clone, Copy, Debug)]
pub(in crate::python) struct Layout {
    current: Current,
    /// The calling frame.
    previous: Member<Frame, At<Frame>>,
    place: Place,
    /// `None`: the object is the frame.
    frame_of_object: Option<Member<FrameObject, usize>>,
    /// The first of a frame's variables. `None`: there is another way to read them.
    variables: Option<Member<Frame, usize>>,
    with: With,
}

/// A thread's current frame: in its state, or in a structure that the state points to.
#[derive(Clone, Copy, Debug)]
enum Current {
    Direct(Member<State, At<Frame>>),
    Indirect(Member<State, At<CFrame>>, Member<CFrame, At<Frame>>),
}

/// The instruction that a frame is at, and what the frame is part of.
#[derive(Clone, Copy, Debug)]
enum Place {
    Pointer {
        instruction: Member<Frame, usize>,
        owner: Member<Frame, u8>,
    },
    /// A number in the code, and a pointer that a generator's frame alone has.
    Number {
        last: Member<Frame, i32>,
        code: Member<Frame, At<Code>>,
        bytes: Member<Code, usize>,
        generator: Member<Frame, usize>,
    },
}

/// The instruction that enters a block: this one, or the one behind it.
#[derive(Clone, Copy, Debug)]
struct With {
    opcode: u8,
    is_before: bool,
}

/// Values of `owner`: a generator's frame, and from here on those of no Python function.
const GENERATOR: u8 = 1;
const INTERNAL: u8 = 3;

/// Found when it is asked for first.
static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();

/// The layout of this interpreter, or `None` if it is not known, or does not fit.
#[inline]
pub(in crate::python) fn layout(py: Python<'_>) -> PyResult<Option<&'static Layout>> {
    if let Some(known) = LAYOUT.get() {
        return Ok(known.as_ref());
    }
    let found = Layout::find(py)?;
    Ok(LAYOUT.get_or_init(|| found).as_ref())
}

/// The layout, if it was found before. The thread need not be attached.
pub(in crate::python) fn known_layout() -> Option<&'static Layout> {
    LAYOUT.get().and_then(Option::as_ref)
}

impl Layout {
    fn find(py: Python<'_>) -> PyResult<Option<Layout>> {
        let version = py.version_info();
        let names = py.import("opcode")?.getattr("opmap")?;
        let with = |name, is_before| {
            let opcode = names.get_item(name)?.extract()?;
            Ok::<_, PyErr>(With { opcode, is_before })
        };
        let frame_of_object = Some(Member::at(size_of::<ffi::PyObject>() + size_of::<usize>()));
        let layout = match (version.major, version.minor) {
            (3, 10) => Layout {
                current: Current::Direct(Member::at(offset_of!(State310, frame))),
                previous: Member::at(offset_of!(Frame310, back)),
                place: Place::Number {
                    last: Member::at(offset_of!(Frame310, last)),
                    code: Member::at(offset_of!(Frame310, code)),
                    bytes: Member::at(offset_of!(Code310, code)),
                    generator: Member::at(offset_of!(Frame310, generator)),
                },
                frame_of_object: None,
                variables: Some(Member::at(offset_of!(Frame310, variables))),
                with: with("SETUP_WITH", false)?,
            },
            (3, 11) => Layout {
                current: Current::Indirect(
                    Member::at(offset_of!(State311, cframe)),
                    Member::at(offset_of!(CFrame311, frame)),
                ),
                previous: Member::at(offset_of!(Frame311, previous)),
                place: Place::Pointer {
                    instruction: Member::at(offset_of!(Frame311, instruction)),
                    owner: Member::at(offset_of!(Frame311, owner)),
                },
                frame_of_object,
                variables: Some(Member::at(size_of::<Frame311>())),
                with: with("BEFORE_WITH", false)?,
            },
            (3, 12) => Layout {
                current: Current::Indirect(Member::at(offset_of!(State311, cframe)), Member::at(0)),
                previous: Member::at(offset_of!(Frame312, previous)),
                place: Place::Pointer {
                    instruction: Member::at(offset_of!(Frame312, instruction)),
                    owner: Member::at(offset_of!(Frame312, owner)),
                },
                frame_of_object,
                variables: Some(Member::at(size_of::<Frame312>())),
                with: with("BEFORE_WITH", false)?,
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
                    current: Current::Direct(Member::at(offsets(current))),
                    previous: Member::at(offsets(frame + 1)),
                    place: Place::Pointer {
                        instruction: Member::at(offsets(frame + 3)),
                        owner: Member::at(offsets(frame + 5)),
                    },
                    frame_of_object,
                    variables: None,
                    with: match minor {
                        13 => with("BEFORE_WITH", false)?,
                        _ => with("LOAD_SPECIAL", true)?,
                    },
                }
            }
            _ => return Ok(None),
        };
        // The offsets in the thread's state are from the interpreter's own table, or the version's headers.
        // The frame that is found with them is compared with the interpreter's before it is followed.
        let innermost = layout
            .stack(|mut frames| frames.next().map(RawFrame::address))
            .flatten();
        let fits = frames::frame(py)
            .is_some_and(|frame| Some(layout.of_object(&frame).address()) == innermost);
        Ok(fits.then_some(layout))
    }

    /// Lends the frames of the calling thread, the innermost first. `None`: the interpreter does not know
    /// the thread.
    #[inline]
    pub(in crate::python) fn stack<R>(&self, act: impl FnOnce(RawFrames<'_>) -> R) -> Option<R> {
        let state = At::<State>::new(attach::state()?.as_ptr() as usize);
        let innermost = match self.current {
            Current::Direct(frame) => state.follow(frame),
            Current::Indirect(cframe, frame) => {
                state.follow(cframe).and_then(|cframe| cframe.follow(frame))
            }
        };
        Some(act(RawFrames {
            layout: self,
            next: innermost,
        }))
    }

    /// The frame of an object that [`frames`] has found on the calling thread's stack.
    pub(in crate::python) fn of_object<'a>(&'a self, frame: &'a Bound<'_, PyAny>) -> RawFrame<'a> {
        let object = frame.as_ptr() as usize;
        let frame = self
            .frame_of_object
            .map_or(object, |frame| At::new(object).get(frame));
        RawFrame {
            layout: self,
            frame: At::new(frame),
        }
    }

    /// Does the instruction at `at` in these bytes of code enter a block?
    pub(in crate::python) fn enters_block(&self, code: &[u8], at: usize) -> bool {
        let at = at.checked_sub(self.with.distance());
        at.and_then(|at| code.get(at)) == Some(&self.with.opcode)
    }
}

impl With {
    /// From the instruction that is known to the one that enters the block, in bytes.
    const fn distance(self) -> usize {
        if self.is_before { 2 } else { 0 }
    }
}

/// The words of `_Py_DebugOffsets`, which CPython has for debuggers.
#[cfg(unix)]
fn debug_offsets() -> Option<impl Fn(usize) -> usize> {
    // SAFETY: no precondition; the name is a C string.
    let runtime = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyRuntime".as_ptr()) };
    let table = At::<DebugOffsets>::new(NonNull::new(runtime)?.as_ptr() as usize);
    let is_there = table.get(Member::<_, [u8; 8]>::at(0)) == *b"xdebugpy";
    // More than 64 words, each an offset within a structure of a few thousand bytes.
    let word = move |at: usize| table.get(Member::<_, u64>::at(at * 8));
    is_there.then_some(move |at| usize::try_from(word(at)).unwrap_or(0))
}

#[cfg(not(unix))]
fn debug_offsets() -> Option<fn(usize) -> usize> {
    None
}

// ---------------------------------------------------------------------- frames

/// The frames of the calling thread, from the innermost to the outermost.
pub(in crate::python) struct RawFrames<'a> {
    layout: &'a Layout,
    next: Option<At<Frame>>,
}

impl<'a> Iterator for RawFrames<'a> {
    type Item = RawFrame<'a>;

    #[inline]
    fn next(&mut self) -> Option<RawFrame<'a>> {
        let (layout, frame) = (self.layout, self.next?);
        self.next = frame.follow(layout.previous);
        Some(RawFrame { layout, frame })
    }
}

/// A frame on the calling thread's stack.
#[derive(Clone, Copy)]
pub(in crate::python) struct RawFrame<'a> {
    layout: &'a Layout,
    frame: At<Frame>,
}

impl RawFrame<'_> {
    /// Its address. Another call may get the same one later.
    pub(in crate::python) fn address(self) -> usize {
        self.frame.address
    }

    /// What the frame is part of, as `owner` says it.
    #[inline]
    fn owner(self) -> u8 {
        match self.layout.place {
            Place::Pointer { owner, .. } => self.frame.get(owner),
            Place::Number { generator, .. } => u8::from(self.frame.get(generator) != 0),
        }
    }

    /// Is it a frame of a generator, or a coroutine?
    pub(in crate::python) fn is_generator(self) -> bool {
        self.owner() == GENERATOR
    }

    /// Is it a frame of a Python function that is no generator?
    #[inline]
    pub(in crate::python) fn is_function(self) -> bool {
        let owner = self.owner();
        owner < INTERNAL && owner != GENERATOR
    }

    /// The address of the instruction that the frame is at. The frame is a function's or a generator's.
    #[inline]
    pub(in crate::python) fn place(self) -> usize {
        match self.layout.place {
            Place::Pointer { instruction, .. } => self.frame.get(instruction),
            Place::Number {
                last, code, bytes, ..
            } => {
                let bytes = self.frame.follow(code).map_or(0, |code| code.get(bytes));
                let first = bytes + offset_of!(ffi::PyBytesObject, ob_sval);
                first.wrapping_add_signed(self.frame.get(last) as isize * 2)
            }
        }
    }

    /// Is the frame, a function's or a generator's, at an instruction that enters a block? False if a tool has
    /// replaced the instruction: then the code object has the original.
    #[inline]
    pub(in crate::python) fn enters_block(self) -> bool {
        let with = self.layout.with;
        // A frame that enters a block is at a call, which is never the first instruction of the code.
        let at = At::<Instruction>::new(self.place() - with.distance());
        at.get(Member::<_, u8>::at(0)) == with.opcode
    }
}

/// A variable of the function of a frame that [`frames`] has found on the calling thread's stack, by its
/// number among the function's variables; up to 3.12. For one that an inner function uses: its cell.
pub(in crate::python) fn variable<'py>(
    frame: &Bound<'py, PyAny>,
    number: usize,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = frame.py();
    let code = frames::code(frame)?;
    let count: usize = code.getattr(interned!(py, "co_nlocals"))?.extract()?;
    let known = layout(py)?.and_then(|layout| Some((layout, layout.variables?)));
    let Some((layout, first)) = known.filter(|_| number < count) else {
        return Ok(None);
    };
    let read = |number: usize| {
        let offset = first.offset + number * size_of::<*mut ffi::PyObject>();
        let variable = Member::<Frame, *mut ffi::PyObject>::at(offset);
        layout.of_object(frame).frame.get(variable)
    };
    let mut value = read(number);
    if value.is_null() && py.version_info() < (3, 11) {
        // There the cells are behind the variables, and an argument is moved to its cell.
        let name = code
            .getattr(interned!(py, "co_varnames"))?
            .get_item(number)?;
        let cells = code.getattr(interned!(py, "co_cellvars"))?;
        if let Ok(cell) = cells.cast::<PyTuple>()?.index(name) {
            value = read(count + cell);
        }
    }
    // SAFETY: attached; a pointer to an object that the frame has a count of, or null if it has no value.
    Ok(unsafe { Bound::from_borrowed_ptr_or_opt(py, value) })
}
