//! Small arrays that ops read, made in main memory: row indices, spans. A device gets them when the first op there asks.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::cuda::{Buffer, Gpu, Ptr};
use crate::error::Result;

/// An element that kernels read as `Raw`.
pub trait Upload: Sized {
    type Raw: Pod;
    fn raw(&self) -> Result<Self::Raw>;
}

impl Upload for u32 {
    type Raw = u32;
    fn raw(&self) -> Result<u32> {
        Ok(*self)
    }
}

/// A fixed array in main memory, and its copy on the device that last asked for it.
pub struct Uploaded<T> {
    list: Vec<T>,
    copy: Mutex<Option<Buffer>>,
}

/// Row indices, ids, positions.
pub type Indices = Uploaded<u32>;

impl<T> From<Vec<T>> for Uploaded<T> {
    fn from(list: Vec<T>) -> Self {
        Uploaded { list, copy: Mutex::new(None) }
    }
}

impl<T: Clone> From<&[T]> for Uploaded<T> {
    fn from(list: &[T]) -> Self {
        list.to_vec().into()
    }
}

impl<T> FromIterator<T> for Uploaded<T> {
    fn from_iter<I: IntoIterator<Item = T>>(iter: I) -> Self {
        iter.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T> Deref for Uploaded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.list
    }
}

impl<T: Upload> Uploaded<T> {
    /// Where the array lies on `gpu`; it stays there as long as `self` lives and no other GPU asks.
    pub fn ptr(&self, gpu: &Arc<Gpu>) -> Result<Ptr> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        match &*copy {
            Some(buffer) if Arc::ptr_eq(buffer.gpu(), gpu) => Ok(buffer.ptr()),
            _ => {
                let raw = self.list.iter().map(Upload::raw).collect::<Result<Vec<T::Raw>>>()?;
                let buffer = gpu.upload(bytemuck::cast_slice(&raw))?;
                let ptr = buffer.ptr();
                *copy = Some(buffer);
                Ok(ptr)
            }
        }
    }
}
