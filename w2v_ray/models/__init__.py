"""The models, in torch alone: no Ray, no transformers. Public names are exported by ``w2v_ray`` itself."""
