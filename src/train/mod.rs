//! Training of a `Vlm` with hand-written backward passes: LoRA, or whole towers.
//!
//! ```text
//! batch.rs (samples -> packed tokens, targets, pictures) -> trainer.rs (one step) -> fit.rs (the loop, resume)
//!                                       optim.rs (AdamW, schedule), checkpoint.rs (state on disk) -^
//! plan.rs (what a run would take)
//! ```

pub mod batch;
pub mod checkpoint;
pub mod fit;
pub mod optim;
pub mod plan;
pub mod trainer;
