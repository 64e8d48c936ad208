-- Weights of a linear layer or an embedding, [out, in], [out].
select
    null::integer as chunk,
    null::integer as feature,
    null::vector as weight,
    null::real as bias
