//! The devices that can hold a tensor and run an op.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
}
