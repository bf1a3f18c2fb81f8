//! kernels/attention_paged.cu, for spans of one query; other spans have their pages gathered (kernels/kv_cache.cu) and go to the kernels of rows.
//! A pass of one query a span can be kept as a graph: all that differs from step to step is read from where `PagedSpans::set` puts it.
use std::sync::Arc;

use super::super::kv_cache::{PAGE, Pages, gather};
use super::super::{int, kernel_dtype};
use super::launch::{Call, Keys, decode, decode_size, expect_scale, prefill};
use super::paged::OP;
use super::{Config, PagedSpans};
use crate::error::Result;
use crate::tensor::{Arg, DType, Gpu, Indices, Ptr, Tensor};

/// Shapes, spans and tables have been checked.
pub fn forward(
    gpu: &Arc<Gpu>,
    out: &mut Tensor,
    q: &Tensor,
    kv: [&Pages; 2],
    spans: &PagedSpans,
    config: &Config,
) -> Result<()> {
    let mut all = vec![&*out, q];
    all.extend(kv.map(Pages::stored).iter().filter(|pages| pages.1.is_none()).map(|pages| pages.0));
    let dtype = kernel_dtype(OP, &all)?;
    expect_scale(OP, config)?;
    let out = out.ptr_mut(gpu)?;
    let q_at = (q.ptr(gpu)?, q.rows());
    let call = |spans| Call { gpu, out, lse: Ptr::NULL, q: q_at, spans, dtype, config };
    let Some((size, keys)) = keys(gpu, kv, spans, dtype, config)? else {
        let [k, v] = rows(q, kv, &spans.tables)?;
        let at = [(k.ptr(gpu)?, k.rows()), (v.ptr(gpu)?, v.rows())];
        return prefill(&call(spans.whole()), at, 1);
    };
    decode(&call(&spans.spans), size, keys)?;
    if spans.spans().iter().all(|s| s.q_len < 2) {
        return Ok(());
    }
    let long = spans.long();
    let [k, v] = rows(q, kv, &long.pages)?;
    prefill(&call(&long.spans), [(k.ptr(gpu)?, k.rows()), (v.ptr(gpu)?, v.rows())], 2)
}

/// The head size of the decode kernel, and where it finds the pages; `None` if there is none for them.
fn keys(
    gpu: &Arc<Gpu>,
    kv: [&Pages; 2],
    spans: &PagedSpans,
    dtype: DType,
    config: &Config,
) -> Result<Option<(usize, Keys)>> {
    let mut args: Vec<Arg> = Vec::new();
    let mut scaled = 0;
    for (rows, scales) in kv.map(Pages::stored) {
        // Kernels count rows in i32.
        int(OP, rows.rows())?;
        args.push(rows.ptr(gpu)?.into());
        if let Some(scales) = scales {
            args.push(scales.ptr(gpu)?.into());
            scaled += 1;
        }
    }
    args.push(spans.tables.ptr(gpu)?.into());
    let (kernel, fits) = match scaled {
        0 => ("attention_paged", true),
        // A lane takes 8 elements.
        2 => ("attention_paged_int8", config.head_size.is_multiple_of(8)),
        _ => ("", false),
    };
    let size = decode_size(dtype, config.head_size).filter(|_| fits);
    Ok(size.map(|size| (size, Keys { kernel, args, reach: spans.reach })))
}

/// Keys and values of these pages, one page after the other, in the type of q.
fn rows(q: &Tensor, kv: [&Pages; 2], list: &Indices) -> Result<[Tensor; 2]> {
    let gathered = |pages: &Pages| {
        let mut out = q.like(&[list.len() * PAGE, pages.stored().0.cols()])?;
        gather(&mut out, pages, list)?;
        Ok(out)
    };
    let [k, v] = kv;
    Ok([gathered(k)?, gathered(v)?])
}
