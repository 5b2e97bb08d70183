//! The arguments of `items()` of a queue, and the list that it returns, of `ItemInfo` of `desist._items`.

use pyo3::prelude::*;

use crate::work::{ItemInfo, ItemState};

/// The items that a caller wants to see.
pub(super) struct Wanted {
    /// `None`: those of all states.
    pub(super) state: Option<ItemState>,
    pub(super) limit: usize,
}

impl Wanted {
    /// The arguments, checked.
    pub(super) fn of(py: Python<'_>, state: Option<&str>, limit: Option<isize>) -> PyResult<Self> {
        py.import("desist._items")?
            .call_method1("check", (state, limit))?;
        Ok(Self {
            state: ALL.into_iter().find(|one| state == Some(name(*one))),
            limit: limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(0)),
        })
    }
}

const ALL: [ItemState; 4] = [
    ItemState::Leased,
    ItemState::Ready,
    ItemState::Delayed,
    ItemState::Dead,
];

fn name(state: ItemState) -> &'static str {
    match state {
        ItemState::Leased => "leased",
        ItemState::Ready => "ready",
        ItemState::Delayed => "delayed",
        ItemState::Dead => "dead",
    }
}

/// The list for the caller. `holder` gives the pid of a holder's process, and its thread, by name or number.
pub(super) fn listed<'py, H, R>(
    py: Python<'py>,
    items: Vec<ItemInfo<H>>,
    holder: impl Fn(H) -> R,
) -> PyResult<Bound<'py, PyAny>>
where
    R: IntoPyObject<'py>,
{
    let row = |item: ItemInfo<H>| {
        let age = item.age.as_secs_f64();
        let (state, key) = (name(item.state), item.key.as_deref().map(str::to_owned));
        let holder = item.holder.map(&holder);
        (item.id, state, item.attempt, age, holder, key)
    };
    let rows: Vec<_> = items.into_iter().map(row).collect();
    py.import("desist._items")?.call_method1("listed", (rows,))
}
