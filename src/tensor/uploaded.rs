//! Small arrays that ops read, made in main memory: row indices, spans. A device gets them when the first op there asks.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use super::cuda::{Buffer, Gpu, Ptr};
use crate::error::{Error, Result};

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
    /// Other elements, as many as before, in the same place.
    pub fn set(&mut self, list: Vec<T>) -> Result<()> {
        if list.len() != self.list.len() {
            return Err(Error::op(
                "indices",
                format!("{} elements", self.list.len()),
                list.len().to_string(),
            ));
        }
        self.list = list;
        let copy = self.copy.get_mut().unwrap_or_else(PoisonError::into_inner);
        copy.as_ref().map_or(Ok(()), |buffer| buffer.gpu().write(buffer.ptr(), &raw(&self.list)?))
    }

    /// Where the array lies on `gpu`; it stays there as long as `self` lives and no other GPU asks.
    pub fn ptr(&self, gpu: &Arc<Gpu>) -> Result<Ptr> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        match &*copy {
            Some(buffer) if Arc::ptr_eq(buffer.gpu(), gpu) => Ok(buffer.ptr()),
            _ => {
                let buffer = gpu.upload(&raw(&self.list)?)?;
                let ptr = buffer.ptr();
                *copy = Some(buffer);
                Ok(ptr)
            }
        }
    }
}

/// The elements' bytes, as kernels read them.
fn raw<T: Upload>(list: &[T]) -> Result<Vec<u8>> {
    let raw = list.iter().map(Upload::raw).collect::<Result<Vec<T::Raw>>>()?;
    Ok(bytemuck::cast_slice(&raw).to_vec())
}
