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

def profiled(what, kind,width,depth,K,launches,rows=None):
    f,b,u=launches
    size=four.two_tiles(width)[0]
    old=(four.FORWARD[size],four.BACKWARD[size],four.UPDATES[four.tiled(width)],four.ROWS)
    four.FORWARD[size],four.BACKWARD[size],four.UPDATES[four.tiled(width)]=four.Launch(*f),four.Launch(*b),four.Launch(*u)
    if rows: four.ROWS=rows
    try:
        g,plan=group(kind,width,depth,K,"triton",X,Y); g.run(plan.part(0,9)); torch.cuda.synchronize()
        s=seconds_of({"step":lambda:g.run(plan)},dev,2)["step"]/len(plan)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
            g.run(plan.part(0,8)); torch.cuda.synchronize()
        say(what=what,kind=kind.__name__,depth=depth,K=K,launches=launches,rows=rows,ms=1e3*s,us={e.key[:20]:round(e.device_time_total/e.count,1) for e in p.key_averages() if e.count==8})
    except Exception as e: say(what="failed",launches=launches,error=repr(e)[:300])
    finally: four.FORWARD[size],four.BACKWARD[size],four.UPDATES[four.tiled(width)],four.ROWS=old
X=torch.randn(N,784,device=dev); Y=torch.randint(10,(N,),device=dev)
U4=(4,1,32)
for f in ((4,3,32),(4,2,32),(4,1,32)): profiled("settings",HighwayNet,50,50,100,(f,f,U4))
profiled("rows",HighwayNet,50,50,100,((4,2,32),(4,3,32),(2,1,32)),32)
profiled("rows",HighwayNet,50,50,100,((4,2,32),(4,3,32),(8,1,32)),64)
for f in ((4,3,32),(4,2,32),(4,1,32),(8,2,32)): profiled("settings",PlainNet,71,50,100,(f,f,(8,1,32)))
profiled("rows",PlainNet,71,50,100,((4,3,32),(4,2,32),(4,1,32)),32)
for f in ((4,2,32),(4,1,32)):
    for K in (132,264): profiled("full card",HighwayNet,50,50,K,(f,f,U4))
# side by side: two groups on two streams, replays in turn
def beside(name, groups):
    streams=[torch.cuda.Stream() for _ in groups]; parts=[g[1].part(i,i+8) for g in groups[:1] for i in range(0,80,8)]
    for (g,plan),st in zip(groups,streams):
        with torch.cuda.stream(st): g.run(plan.part(0,8))
    torch.cuda.synchronize(); t=time.time()
    for _ in range(3):
        for part in parts:
            for (g,plan),st in zip(groups,streams):
                with torch.cuda.stream(st): g.run(part)
    torch.cuda.synchronize(); both=(time.time()-t)/240
    alone=[]
    for g,plan in groups:
        t=time.time()
        for _ in range(3):
            for part in parts: g.run(part)
        torch.cuda.synchronize(); alone.append(1e3*(time.time()-t)/240)
    say(what=name,together_ms=1e3*both,alone_ms=alone)
size=64
for f in ((4,3,32),(4,2,32)):
    four.FORWARD[64]=four.BACKWARD[64]=four.Launch(*f)
    beside(f"two of 50, {f}",[group(HighwayNet,50,50,50,"triton",X,Y) for _ in range(2)])
    beside(f"highway and plain, {f}",[group(HighwayNet,50,50,100,"triton",X,Y),group(PlainNet,71,50,100,"triton",X,Y)])
