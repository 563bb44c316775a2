//! The first half of a block: `x + attention(norm(x))`.

use super::linear::Linear;
use super::norm::Norm;
use super::ops::{self, Heads, Span, merge_heads, split_heads, wide, wide_type};
use super::rotary::Rotary;
use super::{TensorList, flatten};
use crate::layer::{Layer, Microbatch, Saved, SavedTensor, WeightContext};
use candle_core::{D, Device, Result, Tensor, bail};
#[cfg(feature = "cuda")]
use optpipe_kernels::cuda::{ops::attention::Shape, tensors as own};

/// Queries that are worked on together. Large enough for the matrix products to run at full speed,
/// small enough for the products above the diagonal that are thrown away to stay few.
pub(crate) const QUERY_BLOCK: usize = 64;

/// The projections to queries, keys and values.
#[derive(Debug)]
pub(crate) enum Projection {
    /// One each.
    Separate([Linear; 3]),
    /// One for the three, side by side (GPT-2).
    Fused(Linear),
}

/// Root mean square norms of each query and each key head (Qwen3).
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) query: Norm,
    pub(crate) key: Norm,
}

/// Causal self-attention with its norm and its residual connection.
///
/// Keys and values may be shared by groups of query heads (Ainslie et al., GQA, 2023); queries may see
/// back through a window only (Beltagy et al., Longformer, 2020).
///
/// No sequence-by-sequence matrix is kept, nor held as a whole: scores are made for [`QUERY_BLOCK`] queries
/// at a time against the keys that these see, and made again in the backward from queries, keys and
/// the log of the sum of their exponentials (Dao et al., FlashAttention, 2022; Rabe and Staats, 2021).
///
/// | kept for | tensors, by token |
/// | --- | --- |
/// | backward_input | input `hidden`, queries and attended values `heads * head_dim` each, keys and values `kv_heads * head_dim` each, statistics of the norms, log-sum-exp `heads` |
/// | backward_weight | input, attended values, the gradients by output, queries, keys and values, statistics of the norm |
///
/// Queries and keys are kept as attention uses them, rotated and scaled; with head norms as projected,
/// since the norms' backward needs their input: normed and rotated queries and keys are then made again.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) names: Vec<&'static str>,
    pub(crate) norm: Norm,
    pub(crate) projection: Projection,
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) output: Linear,
    pub(crate) rotary: Option<Rotary>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) query_block: usize,
}

/// Queries, keys and values as attention works on them: `[microbatch * kv_heads, sequence * group, head_dim]`,
/// group 1 for keys and values; queries scaled.
struct Attended {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Attention {
    /// How many tensors a forward saves.
    pub(crate) fn saved_tensors(&self) -> usize {
        if self.head_norms.is_some() { 9 } else { 7 }
    }

    /// How many tensors backward_input leaves for backward_weight.
    pub(crate) fn context_tensors(&self) -> usize {
        let projected = match &self.projection {
            Projection::Separate(_) => 3,
            Projection::Fused(_) => 1,
        };
        4 + projected + self.norm.parameters().count() + if self.head_norms.is_some() { 2 } else { 0 }
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// The heads of queries, and of keys and values, for inputs `[microbatch, sequence, hidden]`.
    fn shape(&self, input: &Tensor) -> Result<(Heads, Heads)> {
        let (microbatch, sequence, _) = input.dims3()?;
        let keys = Heads { microbatch, sequence, kv: self.kv_heads, group: 1, width: self.head_dim };
        Ok((Heads { group: self.heads / self.kv_heads, ..keys }, keys))
    }

    /// `[rows, hidden]` to queries, keys and values, `[rows, heads * head_dim]` each.
    fn project(&self, normed: &Tensor) -> Result<[Tensor; 3]> {
        match &self.projection {
            Projection::Separate([query, key, value]) => {
                Ok([query.forward(normed)?, key.forward(normed)?, value.forward(normed)?])
            }
            Projection::Fused(linear) => {
                let all = linear.forward(normed)?;
                let (query, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
                Ok([all.narrow(1, 0, query)?, all.narrow(1, query, kv)?, all.narrow(1, query + kv, kv)?])
            }
        }
    }

    /// Rows of a projection as rows of one head.
    fn by_head(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.reshape(((), self.head_dim))
    }

    /// Queries or keys through the norm of their heads, rotation and scale, from the projection.
    fn place(
        &self,
        x: &Tensor,
        norm: Option<(&Norm, &Tensor)>,
        heads: Heads,
        scale: f64,
        device: &Device,
    ) -> Result<Tensor> {
        let angles = self.angles(x, heads.sequence, device)?;
        match norm {
            Some((norm, statistics)) => {
                split_heads(&norm.apply(&self.by_head(x)?, statistics)?, heads, angles.as_ref(), scale)
            }
            None => split_heads(x, heads, angles.as_ref(), scale),
        }
    }

    fn angles(&self, x: &Tensor, sequence: usize, device: &Device) -> Result<Option<(Tensor, Tensor)>> {
        self.rotary.as_ref().map(|rotary| rotary.angles(sequence, wide_type(x.dtype()), device)).transpose()
    }

    /// The blocks of queries: position of the first, how many, and the keys that they see as first and
    /// number.
    fn blocks(&self, sequence: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let (size, window) = (self.query_block, self.window);
        (0..sequence).step_by(size).map(move |first| {
            let count = size.min(sequence - first);
            let first_key = window.map_or(0, |window| (first + 1).saturating_sub(window));
            (first, count, first_key, first + count - first_key)
        })
    }

    /// What the own kernels need to know, where they take these operands.
    #[cfg(feature = "cuda")]
    fn own_shape(&self, attended: &Attended, sequence: usize) -> Result<Option<Shape>> {
        if !own::takes(&attended.queries) || !own::takes_heads(self.head_dim) {
            return Ok(None);
        }
        let heads = attended.keys.dim(0)?;
        let group = self.heads / self.kv_heads;
        Ok(Some(Shape { heads, sequence, group, head_dim: self.head_dim, window: self.window }))
    }

    fn span(&self, first_query: usize, first_key: usize) -> Span {
        Span { first_query, group: self.heads / self.kv_heads, first_key, window: self.window }
    }

    /// The attended values `[microbatch * kv_heads, sequence * group, head_dim]` and the log-sum-exp of
    /// the scores without the last dimension.
    fn attend(&self, attended: &Attended, sequence: usize) -> Result<(Tensor, Tensor)> {
        #[cfg(feature = "cuda")]
        if let Some(shape) = self.own_shape(attended, sequence)? {
            return own::attention(&attended.queries, &attended.keys, &attended.values, shape);
        }
        let group = self.heads / self.kv_heads;
        // Wide before the loop: on the CPU a product of views in bf16 widens all of what they view.
        let (queries, keys, values) = (wide(&attended.queries)?, wide(&attended.keys)?, wide(&attended.values)?);
        let (mut outputs, mut log_sums) = (Vec::new(), Vec::new());
        for (first, count, first_key, key_count) in self.blocks(sequence) {
            let queries = queries.narrow(1, first * group, count * group)?;
            let keys = keys.narrow(1, first_key, key_count)?;
            let values = values.narrow(1, first_key, key_count)?;
            let scores = queries.matmul(&keys.t()?)?;
            let (probabilities, log_sum) = ops::attend(&scores, self.span(first, first_key))?;
            outputs.push(probabilities.matmul(&values)?);
            log_sums.push(log_sum);
        }
        Ok((Tensor::cat(&outputs, 1)?.to_dtype(attended.queries.dtype())?, Tensor::cat(&log_sums, 1)?))
    }

    /// The gradients by queries, keys and values from the gradient by the attended values, all in the
    /// layout of [`Attended`]; `mean` `[microbatch * kv_heads, sequence * group]` is the product of the
    /// attended values and their gradient, which is the gradient by the probabilities averaged under them.
    fn attend_backward(
        &self,
        attended: &Attended,
        log_sum: &Tensor,
        gradient: &Tensor,
        mean: &Tensor,
        sequence: usize,
    ) -> Result<Attended> {
        #[cfg(feature = "cuda")]
        if let Some(shape) = self.own_shape(attended, sequence)? {
            let Attended { queries, keys, values } = attended;
            let of = own::AttentionBackward { queries, keys, values, gradient, log_sums: log_sum, means: mean };
            let [queries, keys, values] = own::attention_backward(of, shape)?;
            return Ok(Attended { queries, keys, values });
        }
        let group = self.heads / self.kv_heads;
        let dtype = attended.queries.dtype();
        let (queries, keys, values) = (wide(&attended.queries)?, wide(&attended.keys)?, wide(&attended.values)?);
        let gradient = wide(gradient)?;
        let mut dqueries = Vec::new();
        let (mut dkeys, mut dvalues) = (keys.zeros_like()?, values.zeros_like()?);
        for (first, count, first_key, key_count) in self.blocks(sequence) {
            let rows = |x: &Tensor| x.narrow(1, first * group, count * group);
            let queries = rows(&queries)?;
            let gradient = rows(&gradient)?;
            let keys = keys.narrow(1, first_key, key_count)?;
            let values = values.narrow(1, first_key, key_count)?;
            let scores = queries.matmul(&keys.t()?)?;
            let dprobabilities = gradient.matmul(&values.t()?)?;
            let (probabilities, dscores) = ops::attend_backward(
                &scores,
                self.span(first, first_key),
                &rows(log_sum)?,
                &dprobabilities,
                &rows(mean)?,
            )?;
            dqueries.push(dscores.matmul(&keys)?);
            let behind = sequence - first_key - key_count;
            let add = |sum: &Tensor, x: Tensor| sum + x.pad_with_zeros(1, first_key, behind)?;
            dkeys = add(&dkeys, dscores.transpose(1, 2)?.matmul(&queries)?)?;
            dvalues = add(&dvalues, probabilities.transpose(1, 2)?.matmul(&gradient)?)?;
        }
        Ok(Attended {
            queries: Tensor::cat(&dqueries, 1)?.to_dtype(dtype)?,
            keys: dkeys.to_dtype(dtype)?,
            values: dvalues.to_dtype(dtype)?,
        })
    }
}

impl Layer for Attention {
    fn parameter_names(&self) -> Vec<&'static str> {
        self.names.clone()
    }

    fn parameters(&self) -> Vec<&Tensor> {
        let mut parameters: Vec<_> = self.norm.parameters().collect();
        match &self.projection {
            Projection::Separate(linears) => parameters.extend(linears.iter().flat_map(Linear::parameters)),
            Projection::Fused(linear) => parameters.extend(linear.parameters()),
        }
        if let Some(HeadNorms { query, key }) = &self.head_norms {
            parameters.extend(query.parameters().chain(key.parameters()));
        }
        parameters.extend(self.output.parameters());
        parameters
    }

    fn parameter_slots(&mut self) -> Vec<&mut Tensor> {
        let mut slots: Vec<_> = self.norm.slots().collect();
        match &mut self.projection {
            Projection::Separate(linears) => slots.extend(linears.iter_mut().flat_map(Linear::slots)),
            Projection::Fused(linear) => slots.extend(linear.slots()),
        }
        if let Some(HeadNorms { query, key }) = &mut self.head_norms {
            slots.extend(query.slots().chain(key.slots()));
        }
        slots.extend(self.output.slots());
        slots
    }

    fn forward(&self, input: &Tensor, _: &Microbatch) -> Result<(Tensor, Saved)> {
        let (heads, kv) = self.shape(input)?;
        let device = input.device();
        let x = flatten(input)?;
        let (normed, statistics) = self.norm.forward(&x)?;
        let [query, key, value] = self.project(&normed)?;
        drop(normed);
        let mut head_statistics = Vec::new();
        let (query_norm, key_norm) = match &self.head_norms {
            None => (None, None),
            Some(norms) => {
                head_statistics.push(norms.query.statistics(&self.by_head(&query)?)?);
                head_statistics.push(norms.key.statistics(&self.by_head(&key)?)?);
                (Some((&norms.query, &head_statistics[0])), Some((&norms.key, &head_statistics[1])))
            }
        };
        let attended = Attended {
            queries: self.place(&query, query_norm, heads, self.scale(), device)?,
            keys: self.place(&key, key_norm, kv, 1.0, device)?,
            values: split_heads(&value, kv, None, 1.0)?,
        };
        let (mixed, log_sum) = self.attend(&attended, heads.sequence)?;
        let mixed = merge_heads(&mixed, heads, None, 1.0)?;
        let output = (self.output.forward(&mixed)? + &x)?.reshape(input.dims())?;

        let Attended { queries, keys, values } = attended;
        let (queries, keys) = if self.head_norms.is_some() {
            (query.force_contiguous()?, key.force_contiguous()?)
        } else {
            (queries, keys)
        };
        let large = [x, queries, keys, values, mixed].map(SavedTensor::offloadable);
        let small = [statistics, log_sum].into_iter().chain(head_statistics).map(SavedTensor::resident);
        Ok((output, Saved(large.into_iter().chain(small).collect())))
    }

    fn backward_input(
        &self,
        saved: Saved,
        gradient: &Tensor,
        _: &Microbatch,
    ) -> Result<(Option<Tensor>, WeightContext)> {
        let (heads, kv) = self.shape(gradient)?;
        let device = gradient.device();
        let mut saved = TensorList::of_saved(saved);
        let [x, queries, keys, values, mixed, statistics, log_sum] = saved.take()?;
        let raw = match &self.head_norms {
            None => None,
            Some(_) => {
                let [query_statistics, key_statistics] = saved.take()?;
                Some((queries.clone(), keys.clone(), query_statistics, key_statistics))
            }
        };
        saved.finish()?;
        let attended = match (&self.head_norms, &raw) {
            (Some(norms), Some((query, key, query_statistics, key_statistics))) => Attended {
                queries: self.place(query, Some((&norms.query, query_statistics)), heads, self.scale(), device)?,
                keys: self.place(key, Some((&norms.key, key_statistics)), kv, 1.0, device)?,
                values,
            },
            _ => Attended { queries, keys, values },
        };

        let dy = flatten(gradient)?;
        let dmixed = self.output.backward_input(&dy)?;
        // By row and head; then in the layout of the scores' rows.
        let mean = (wide(&dmixed)? * wide(&mixed)?)?.reshape(((), self.heads, self.head_dim))?.sum(D::Minus1)?;
        let mean = split_heads(&mean, Heads { width: 1, ..heads }, None, 1.0)?.squeeze(2)?;
        let dmixed = split_heads(&dmixed, heads, None, 1.0)?;
        let dattended = self.attend_backward(&attended, &log_sum, &dmixed, &mean, heads.sequence)?;
        drop((attended, dmixed, log_sum));

        let angles = self.angles(&x, heads.sequence, device)?;
        let mut dquery = merge_heads(&dattended.queries, heads, angles.as_ref(), self.scale())?;
        let mut dkey = merge_heads(&dattended.keys, kv, angles.as_ref(), 1.0)?;
        let dvalue = merge_heads(&dattended.values, kv, None, 1.0)?;
        let mut norm_gradients = Vec::new();
        if let (Some(norms), Some((query, key, query_statistics, key_statistics))) = (&self.head_norms, &raw) {
            for (norm, x, statistics, gradient) in
                [(&norms.query, query, query_statistics, &mut dquery), (&norms.key, key, key_statistics, &mut dkey)]
            {
                let rows = self.by_head(x)?;
                let (dx, parameters) = norm.backward(&rows, statistics, &self.by_head(gradient)?, None)?;
                *gradient = dx.reshape(gradient.dims())?;
                norm_gradients.extend(parameters);
            }
        }
        let (dnormed, dprojected) = match &self.projection {
            Projection::Separate([query, key, value]) => {
                let sum = (query.backward_input(&dquery)? + key.backward_input(&dkey)?)?;
                ((sum + value.backward_input(&dvalue)?)?, vec![dquery, dkey, dvalue])
            }
            Projection::Fused(linear) => {
                let all = Tensor::cat(&[dquery, dkey, dvalue], 1)?;
                (linear.backward_input(&all)?, vec![all])
            }
        };
        let (dx, mut parameters) = self.norm.backward(&x, &statistics, &dnormed, Some(&dy))?;
        parameters.extend(norm_gradients);
        let context = [x, statistics, mixed, dy].into_iter().chain(dprojected).chain(parameters).collect();
        Ok((Some(dx.reshape(gradient.dims())?), WeightContext(context)))
    }

    fn backward_weight(&self, context: WeightContext, _: &Microbatch) -> Result<Vec<Tensor>> {
        let mut context = TensorList::of_context(context);
        let [x, statistics, mixed, dy] = context.take()?;
        let normed = self.norm.apply(&x, &statistics)?;
        let mut projections = Vec::new();
        match &self.projection {
            Projection::Separate(linears) => {
                let gradients: [Tensor; 3] = context.take()?;
                for (linear, gradient) in linears.iter().zip(&gradients) {
                    linear.backward_weight(&normed, gradient, &mut projections)?;
                }
            }
            Projection::Fused(linear) => {
                let [gradient] = context.take()?;
                linear.backward_weight(&normed, &gradient, &mut projections)?;
            }
        }
        let mut gradients = context.take_some(self.norm.parameters().count())?;
        gradients.extend(projections);
        if self.head_norms.is_some() {
            gradients.extend(context.take_some(2)?);
        }
        context.finish()?;
        self.output.backward_weight(&mixed, &dy, &mut gradients)?;
        if gradients.len() != self.names.len() {
            bail!("{} gradients for {} parameters", gradients.len(), self.names.len());
        }
        Ok(gradients)
    }
}
