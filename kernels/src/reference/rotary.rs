//! The rotary position embedding (Su et al., RoFormer, 2021), on the two halves of a head as Llama has it.

/// Turns each pair `(x[i], x[i + width / 2])` of `x` `[tokens, heads, width]` by the angle of its token's position,
/// the token's number modulo the sequence length; backward by its negative. Cosines and sines are `[sequence,
/// width / 2]`.
pub fn rope(x: &[f64], cosines: &[f64], sines: &[f64], heads: usize, width: usize, backward: bool) -> Vec<f64> {
    let half = width / 2;
    let sequence = cosines.len() / half;
    let mut y = Vec::with_capacity(x.len());
    for (token, heads) in x.chunks_exact(heads * width).enumerate() {
        let position = token % sequence * half;
        for head in heads.chunks_exact(width) {
            let (low, high) = head.split_at(half);
            let turn = |i: usize| {
                let sine = if backward { -sines[position + i] } else { sines[position + i] };
                let cosine = cosines[position + i];
                (low[i] * cosine - high[i] * sine, high[i] * cosine + low[i] * sine)
            };
            y.extend((0..half).map(|i| turn(i).0));
            y.extend((0..half).map(|i| turn(i).1));
        }
    }
    y
}
