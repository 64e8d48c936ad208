-- Weights of a layer norm, [n], [n].
select
    null::vector as weight,
    null::vector as bias
