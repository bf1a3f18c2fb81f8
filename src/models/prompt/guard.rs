//! The crate tokenizers panics on some malformed files (a broken decoder, merges longer than every token): here, and only here,
//! a panic is turned into an error.
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `work` returns, or what it said when it panicked; nothing is printed then. `work` changes nothing that the caller goes on
/// using, but for the tokenizer's cache, which only ever holds whole entries.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let out = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(false);
    out.map_err(|payload| match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(said), _) => said.clone(),
        (None, Some(said)) => (*said).to_string(),
        (None, None) => "no reason given".to_string(),
    })
}
