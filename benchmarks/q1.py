import sys, json, time, os
sys.path.insert(0, os.getcwd())
import torch
from functools import partial
t0=time.time()
from flowstudy import HighwayNet, PlainNet
from benchmarks.timing import seconds_of
from flowstudy.train import stack
from flowstudy.train.batches import batches, padded_size
from flowstudy.train.stacks.group import Group
from flowstudy.train.stacks.four_launches import nets as four
from flowstudy.train.stacks.four_launches.there import why_not
out=open(os.path.join(os.environ.get("OUT","/tmp"),"q1.jsonl"),"w")
dev=torch.device("cuda:0")
print("why not:", repr(why_not(dev)), flush=True)
N=2000
def say(**row):
    row["t"]=round(time.time()-t0,1); print(row,flush=True); print(json.dumps(row),file=out,flush=True)
def group(kind,width,depth,K,backend,x,y,batch=20,act="tanh"):
    torch.manual_seed(0)
    base=kind(784,width,depth,10,act) if kind is PlainNet else kind(784,width,depth,10,act,gate_bias=-3.0)
    many=stack([base],dev)
    from dataclasses import replace
    many=replace(many,state={k:v.repeat(K,*[1]*(v.ndim-1)).contiguous() for k,v in many.state.items()})
    g=Group(many,torch.full((K,),0.9),x,y,padded_size(batch),backend); g.set_rate(torch.full((K,),0.005))
    plan=batches(N,batch,0,0).part(0,min(80,N//batch))
    return g,plan
def timed(kind,width,depth,K,backend,batch=20,rounds=3):
    x=torch.randn(N,784,device=dev); y=torch.randint(10,(N,),device=dev)
    g,plan=group(kind,width,depth,K,backend,x,y,batch)
    s=seconds_of({"step":lambda:g.run(plan),"loss":g.loss},dev,rounds)
    return dict(ms=1e3*s["step"]/len(plan),loss_ms=1e3*s["loss"])
# right?
for kind,width,act in ((HighwayNet,50,"tanh"),(PlainNet,71,"relu"),(HighwayNet,50,"relu")):
    torch.manual_seed(1); x=torch.randn(N,784,device=dev); y=torch.randint(10,(N,),device=dev)
    res={}
    for b in ("triton","cuda graph"):
        g,plan=group(kind,width,10,3,b,x,y,act=act); g.run(plan); res[b]=(g.state(),g.loss())
    a,b=res["triton"],res["cuda graph"]
    say(what="gap",kind=kind.__name__,act=act,weights=max(((a[0][k]-b[0][k]).norm()/b[0][k].norm()).item() for k in b[0]),loss=(a[1]/b[1]-1).abs().max().item(),losses=a[1].tolist())
def tryset(kind,width,depth,K,setting,**kw):
    size=four.tiled(width); before=four.PASSES[size]; four.PASSES[size]=four.Launch(*setting)
    try: say(what="setting",kind=kind.__name__,depth=depth,K=K,setting=setting,**timed(kind,width,depth,K,"triton",**kw))
    except Exception as e: say(what="failed",setting=setting,error=repr(e)[:300])
    finally: four.PASSES[size]=before
if len(sys.argv)>1: sys.exit()
for s in [(4,3,32),(4,3,16),(4,2,16),(4,1,16),(2,3,16),(8,3,16)]: tryset(HighwayNet,50,50,100,s,rounds=2)
for s in [(8,1,32),(8,1,16),(8,2,16),(16,1,32),(16,1,16)]: tryset(PlainNet,71,50,100,s,rounds=2)
for kind,width,depth,K in ((HighwayNet,50,10,100),(HighwayNet,50,50,1),(HighwayNet,50,50,264),(PlainNet,71,10,100)):
    for b in ("triton","cuda graph"):
        say(what="steps",kind=kind.__name__,depth=depth,K=K,backend=b,**timed(kind,width,depth,K,b,rounds=2))
# where the time goes
x=torch.randn(N,784,device=dev); y=torch.randint(10,(N,),device=dev)
g,plan=group(HighwayNet,50,50,100,"triton",x,y); g.run(plan.part(0,8)); torch.cuda.synchronize()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
    g.run(plan.part(0,8)); torch.cuda.synchronize()
for e in p.key_averages(): say(what="kernel",name=e.key[:60],count=e.count,us=e.device_time_total/max(e.count,1))
x60=torch.randn(60000,784,device=dev); y60=torch.randint(10,(60000,),device=dev)
for b in ("triton","cuda graph"):
    g,_=group(HighwayNet,50,10,100,b,x60,y60); g.loss(); torch.cuda.synchronize(); t=time.time(); g.loss(); torch.cuda.synchronize(); say(what="loss60000",backend=b,s=time.time()-t)
